"""The sum of a sublayer's Jacobians over all that is added, in closed form or by autodiff of its parts' own code."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ..runs import allowance, rounded_up
from ._sublayer import matrix_of_sums, Sublayer, sum_by_autodiff, Sums, sums


class Total:
    """A running sum, between batches in float64 on the host."""

    def __init__(self, sub: Sublayer):
        self.sub, self.sums, self.whole, self.weight = sub, Sums(None, None, None), np.zeros(()), 0.0

    def add(self, x: Any, weights: Float[np.ndarray, "batch seq"]) -> "Total":
        """Adds what entered in a batch, `[batch seq d_model]`, by its weights."""
        self.weight += float(weights.sum())
        if self.sub.is_closed:
            self.sums = self.sums.plus(sums(self.sub, x, jnp.asarray(weights, x.dtype)))
        else:
            self.whole = self.whole + _one_by_one(self.sub, x, weights)
        return self

    def matrix(self) -> Float[np.ndarray, "d_out d_model"]:
        """The sum."""
        if not self.sub.is_closed:
            return self.whole
        found = matrix_of_sums(self.sub, self.sums)
        return found + self.weight * np.eye(len(found)) if self.sub.beside else found


def _one_by_one(sub: Sublayer, x: Any, weights: Float[np.ndarray, "batch seq"]) -> Float[np.ndarray, "d_out d_model"]:
    """The sum over positions where no closed form is known, of those that count alone."""
    rows, weight = np.asarray(x).reshape(-1, x.shape[-1]), weights.reshape(-1)
    rows, weight = rows[weight > 0], weight[weight > 0].astype(rows.dtype)
    if not len(rows):
        return np.zeros(())
    # A Jacobian, and as many tangents in an MLP that is four times as wide, gated.
    together = max(1, min(rounded_up(len(rows)), allowance() // (10 * rows.shape[1] ** 2 * rows.itemsize)))
    groups = rounded_up(-(-len(rows) // together))
    more = groups * together - len(rows)
    rows = np.concatenate([rows, np.repeat(rows[-1:], more, axis=0)])
    weight = np.concatenate([weight, np.zeros(more, weight.dtype)])
    found = sum_by_autodiff(sub, jax.device_put(rows), jax.device_put(weight), together=together)
    return np.asarray(found, np.float64)
