"""Edges that were computed in low precision, and again in full precision where it could matter."""

import dataclasses
from typing import Any

from .._shown import Shown


@dataclasses.dataclass(frozen=True)
class Recomputed(Shown):
    """What low precision did to edges of which those above a threshold, or the largest, were kept. Errors are relative to the largest edge.

    **Attributes:** - `precision`: in which all edges were computed, in JAX's words. - `error`: the largest error that was measured, of
    those that were computed again. - `bound`: how near to the threshold, or to the least that is kept, an edge was computed again, where
    that is furthest. - `edges`: how many were. - `of`: how many there are.
    """

    precision: str
    error: float
    bound: float
    edges: int
    of: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.edges} of {self.of} edges computed again; in {self.precision} they were off by up to {self.error:.1e} of the largest, "
            f"{self.bound:.1e} was allowed for"
        )
