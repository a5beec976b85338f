"""How many tokens of runs from a cut on go through a block together."""

import jax

from .._target import on_cpu
from ..models import Transformer


# Bytes that a block's program may hold on a CPU. What is above 32 MiB the C library takes from the system at every call and gives back
# after it, and the system clears every page of it: that takes as long as an eighth of the products.
KEPT = 3 * 2**23


def tokens_together(model: Transformer, seq: int, tokens_at_once: int) -> int:
    """Counts tokens to be run together, `tokens_at_once` at most: on an accelerator so many, on a CPU as many as its memory is kept for.

    A token holds what the widest matrix of a block makes of it, or its attention scores, before and after a function of them.
    """
    if not on_cpu():
        return tokens_at_once
    widest = max((x.size for x in jax.tree.leaves(model.blocks)), default=0) // model.d_model
    numbers = 2 * max(widest, model.n_heads * seq) + model.d_model
    return max(1, min(tokens_at_once, KEPT // (numbers * model.activation_dtype.itemsize)))
