"""What the linearised model takes in memory, and so how much of it goes at once."""

import math
from collections.abc import Sequence

import jax
from jaxtyping import Array

from .._sites import Kind, Site
from .._tap import Everything
from ..parts import Attention
from ._segment import Segment


def chunk_for(segments: Sequence[Segment], budget: int) -> int:
    """Finds how many tangents at once keep what autodiff holds for them within `budget` bytes."""
    held = 0
    for segment in segments:
        ends = 2 * sum(math.prod(end.shape) for end in segment.shapes())
        held = max(held, ends + max(numbers_held(segment, layer) for layer in range(len(segment.blocks))))
    return max(1, budget // (held * segments[0].resid.dtype.itemsize))


def numbers_held(segment: Segment, layer: int = 0) -> int:
    """Counts the numbers that a block holds for one tangent, at all positions: one at each of its sites, and another for each score."""
    values = _values_of.eval_shape(segment)
    sizes = {site.kind: math.prod(value.shape) for site, value in values.items() if site.layer == layer}
    return sum(sizes.values()) + sizes.get(Kind.ATTN_SCORES, 0)


@jax.jit  # never run: its shapes are asked for
def _values_of(segment: Segment) -> dict[Site, Array]:
    return segment.record(_ButResults())


class _ButResults(Everything):
    """Every site but each head's result, which is made only where it is asked for."""

    def __contains__(self, site: object) -> bool:
        return isinstance(site, Site) and site.kind != Kind.RESULT


def heads_of(segment: Segment) -> int:
    """Counts the heads of the attention that closed forms may pass, at least 1."""
    attn = segment.blocks[0].attn
    return attn.W_Q.shape[0] if type(attn) is Attention else 1
