"""Nodes at a site, listed: of tens of thousands at every position a few have an effect."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class NodeList(NamedTuple):
    """Some of the nodes at a site, with their effects; others have none.

    **Attributes:** - `numbers`: in the flat array of `shape`, ascending. - `effects` `[n]`. - `shape`: `[node]` where positions are summed,
    else `[seq node]`; the last node is the error.
    """

    numbers: Int[np.ndarray, " n"]
    effects: Float[np.ndarray, " n"]
    shape: tuple[int, ...]

    @staticmethod
    def empty(*shape: int) -> "NodeList":
        return NodeList(np.zeros(0, np.int64), np.zeros(0), shape)

    @property
    def size(self) -> int:
        """How many nodes there are at the site, listed or not."""
        return int(np.prod(self.shape))

    def number(self, index: Int[np.ndarray, "m 3"]) -> Int[np.ndarray, " m"]:
        """The numbers of the nodes of which these are instances, as (example, position, node)."""
        position = index[:, 1] if len(self.shape) == 2 else 0
        return index[:, 2] + position * self.shape[-1]

    def holds(self, index: Int[np.ndarray, "m 3"]) -> Bool[np.ndarray, " m"]:
        """Whether the nodes of which these are instances are listed."""
        return np.isin(self.number(index), self.numbers)

    def plus(self, index: Int[np.ndarray, "m 3"], effects: Float[np.ndarray, " m"]) -> "NodeList":
        """With the effects of instances added to those of their nodes."""
        every = np.concatenate([self.numbers, self.number(index)])
        numbers, place = np.unique(every, return_inverse=True)
        sums = np.bincount(place.reshape(-1), np.concatenate([self.effects, effects]), len(numbers))
        return NodeList(numbers, sums, self.shape)

    def divided(self, by: int) -> "NodeList":
        return self._replace(effects=self.effects / by)

    def above(self, threshold: float) -> "NodeList":
        """Those whose effect is larger than the threshold, in size."""
        kept = np.abs(self.effects) > threshold
        return NodeList(self.numbers[kept], self.effects[kept], self.shape)
