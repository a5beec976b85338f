"""A few positions of a corpus, drawn evenly while it passes by: what a certificate of a mean is measured on."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


SIZE = 32


class Sample(NamedTuple):
    """`rows` `[n d_model]`: what entered there; `weights` `[n]`: what they count; `ranks` `[n]`: the random numbers by which they were
    drawn, the smallest of all. `seen`: of how many.
    """

    rows: np.ndarray
    weights: np.ndarray
    ranks: np.ndarray
    seen: int = 0

    @staticmethod
    def empty(width: int) -> "Sample":
        return Sample(np.zeros((0, width)), np.zeros(0), np.zeros(0))

    def drawn(self, x: Float[Array, "batch seq d_model"], weights: Float[np.ndarray, "batch seq"]) -> "Sample":
        """With the positions of a batch among those to draw from."""
        there = np.flatnonzero(weights)
        if not len(there):
            return self
        ranks = np.random.default_rng(self.seen).random(len(there))
        first = np.argsort(ranks)[:SIZE]
        chosen = np.zeros(SIZE, np.int32)  # of one size, so that one program serves
        chosen[: len(first)] = there[first]
        rows = np.asarray(_rows_at(x, chosen))[: len(first)]
        more = Sample(rows, weights.reshape(-1)[there[first]], ranks[first], len(there))
        return self.with_(more)

    def of(self, n_positions: int, which: str = "") -> str:
        """Of how many positions it was drawn, in words: not of all that are in a mean, where what was merged had no sample."""
        drawn = f"{len(self.rows)} of {self.seen} positions{which}"
        return drawn if self.seen == n_positions else f"{drawn}; {n_positions} are in the mean"

    def with_(self, other: "Sample") -> "Sample":
        """Both together, the smallest ranks kept."""
        join = lambda a, b: np.concatenate([a, b]) if len(a) else b
        rows, weights, ranks = map(join, self[:3], other[:3])
        first = np.argsort(ranks, kind="stable")[:SIZE]
        return Sample(rows[first], weights[first], ranks[first], self.seen + other.seen)


@ft.partial(jax.jit)
def _rows_at(x: Array, chosen: Array) -> Array:
    return jnp.take(x.reshape(-1, x.shape[-1]), chosen, axis=0, mode="clip")
