"""What training of masks found: a score for each edge, and the circuit of the best."""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Float

from .._shown import Shown
from ..graph import ComponentGraph


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedMasks(Shown):
    """A circuit whose edges were chosen by gradient.

    **Attributes:**

    - `graph`: whose edges these are. - `scores` `[sender receiver]`: the probability that an edge is not removed, 0 where there is none;
      the largest are the edges to keep.
    - `kept` `[sender receiver]`: the edges of the largest scores, a mask for `jc.patch_edges`: the share that was asked for.
    - `loss` `[step]`: how far the metric was from the clean one, 0, as a part of how far it is with no edge kept, 1. - `share` `[step]`: of
      all edges that were expected to be kept.
    - `full`, `empty`, `metric`: the metric's mean over the prompts with all edges, none, and those `kept`.
    """

    graph: ComponentGraph
    scores: Float[np.ndarray, "*position sender receiver"]
    kept: Bool[np.ndarray, "*position sender receiver"]
    loss: Float[np.ndarray, " step"]
    share: Float[np.ndarray, " step"]
    full: float
    empty: float
    metric: float

    @property
    def faithfulness(self) -> float:
        """How much of the way from no edge to all the kept ones go, 1 for all of it; NaN where these have equal means, as of pairs that are
        given in both directions.
        """
        gap = self.full - self.empty
        return (self.metric - self.empty) / gap if gap else math.nan

    def __repr__(self) -> str:
        kept, all = int(self.kept.sum()), self.graph.n_edges
        return f"TrainedMasks({kept} of {all} edges kept, faithfulness {self.faithfulness:.3f}, {len(self.loss)} steps)"
