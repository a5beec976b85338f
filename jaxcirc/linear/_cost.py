"""What the linearised model takes in memory, and so how much of it goes at once."""

import math
from collections.abc import Sequence

import jax

from .._sites import Kind
from ..models import is_known
from ._segment import Segment


def chunk_for(segments: Sequence[Segment], budget: int) -> int:
    """Finds how many tangents at once keep what autodiff holds for them within `budget` bytes."""
    held = 0
    for segment in segments:
        ends = 2 * sum(math.prod(end.shape) for end in segment.shapes())
        held = max(held, ends + numbers_held(segment))
    return max(1, budget // (held * segments[0].resid.dtype.itemsize))


def numbers_held(segment: Segment) -> int:
    """Counts the numbers that a block holds for one tangent, at all positions: one at each of its sites, and another for each score."""
    sizes = {kind: math.prod(value.shape) for kind, value in _inside.eval_shape(segment).items()}
    return sum(sizes.values()) + sizes.get(Kind.ATTN_SCORES, 0)


_inside = jax.jit(Segment.inside)  # never run: its shapes are asked for


def heads_of(segment: Segment) -> int:
    """Counts the heads of the attention that closed forms may pass, at least 1."""
    block = segment.blocks[0]
    return block.attn.W_Q.shape[0] if is_known(block, "attn") else 1
