"""All that was computed of an attribution graph."""

import dataclasses
import functools as ft
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ._influence import influence, output_weights, Scores, scores
from ._table import Directions, Table


@dataclasses.dataclass(frozen=True, eq=False)
class Whole:
    """All that was computed of a graph: its nodes, the rows of those that have one, `targets`, what it is of, `meta`, and the `directions`
    that it explains, if it does not explain tokens.
    """

    table: Table
    rows: Float[np.ndarray, "target node"]
    targets: Int[np.ndarray, " target"]
    meta: dict[str, Any]
    directions: Directions | None = None

    @ft.cached_property
    def influence(self) -> Float[np.ndarray, " node"]:
        return influence(self.rows, self.targets, output_weights(self.table))

    @ft.cached_property
    def scores(self) -> Scores:
        return scores(self.rows, self.targets, self.table, self.influence)

    def cumulated(self) -> Float[np.ndarray, " node"]:
        """The share of all influence that each node and those of more than it make up."""
        order = np.argsort(-self.influence, kind="stable")
        shares = np.empty(len(order))
        shares[order] = np.cumsum(self.influence[order]) / (self.influence.sum() or 1.0)
        return np.minimum(shares, 1.0)
