"""How many are run at once."""

import numpy as np
from jaxtyping import Int

from .._checks import check_count


TOKENS_AT_ONCE = 8192


def in_groups(count: int, tokens_each: int, tokens_at_once: int) -> list[Int[np.ndarray, " group"]]:
    """The numbers below `count` in groups of one size, so that one program serves them all; the last number fills up the last group."""
    check_count("tokens_at_once", "tokens are run at once", tokens_at_once)
    groups = -(-count // min(count, max(1, tokens_at_once // tokens_each)))
    size = -(-count // groups)
    return [np.minimum(np.arange(i * size, (i + 1) * size), count - 1) for i in range(groups)]
