"""A mean over prompts as they come, with how far they lie from it: Welford's update, which loses no digits to large sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


_EXACT = jax.lax.Precision.HIGHEST
Matrices = Float[Array, "average d_model d_model"]


class Running(NamedTuple):
    """Of one layer, for each average: the mean so far, the weight in it, how many prompts had a part, and the weighted sum of their squared
    distances from the mean (Frobenius).
    """

    mean: Matrices
    weight: Float[Array, " average"]
    prompts: Float[Array, " average"]
    spread: Float[Array, " average"]

    @property
    def standard_error(self) -> Float[Array, " average"]:
        """The standard error of the mean (Frobenius): the root of the variance between prompts by how many there were. NaN for one prompt.

        Where prompts weigh differently, as in clusters, it is as if they weighed the same.
        """
        return jnp.where(self.prompts > 1, jnp.sqrt(self.spread / self.weight / (self.prompts - 1)), jnp.nan)

    @property
    def relative_error(self) -> Float[Array, " average"]:
        """The same by the size of the mean."""
        return self.standard_error / jnp.linalg.norm(self.mean, axis=(1, 2))


def nothing(average: int, d_model: int, dtype: jnp.dtype) -> Running:
    """A mean of no prompts."""
    none = lambda: jnp.zeros(average, dtype)  # each its own: buffers are given away
    return Running(jnp.zeros((average, d_model, d_model), dtype), none(), none(), none())


@jax.jit
def _squares(x: Matrices, y: Matrices) -> Float[Array, " average"]:
    return jnp.einsum("aij,aij->a", x, y, precision=_EXACT)


def whole(x: Matrices, weight: Float[Array, " average"], *, summed: bool) -> Float[Array, "1 d_model d_model"]:
    """The one matrix `[1 d_model d_model]` of several averages: their sum where each is a part of it, or else their mean by weight."""
    # [average] · [average d_model d_model] -> [d_model d_model]
    return x.sum(0)[None] if summed else jnp.einsum("a,aij->ij", weight / weight.sum(), x, precision=_EXACT)[None]


def _add(
    running: Running, x: Matrices, weight: Float[Array, " average"], *, summed: bool
) -> tuple[Running, Array, Array]:
    """Takes in one prompt, whose averages are parts of one if they are `summed`. **Returns:** the new mean, how far it moved by its size,
    of all averages or of the one that they are parts of; and the size of the prompt's one matrix (both Frobenius).
    """
    total = running.weight + weight
    share = jnp.where(weight > 0, weight / jnp.where(total > 0, total, 1), 0)[:, None, None]
    delta = x - running.mean
    mean = running.mean + share * delta
    spread = running.spread + weight * _squares(delta, x - mean)
    moving = (mean, share * delta)
    size, by = (_norm(whole(each, weight, summed=True) if summed else each) for each in moving)
    moved = by / jnp.where(size > 0, size, 1)
    return (
        Running(mean, total, running.prompts + (weight > 0).astype(weight.dtype), spread),
        moved,
        _norm(whole(x, weight, summed=summed)),
    )


def _norm(x: Matrices) -> Array:
    return jnp.sqrt(jnp.sum(_squares(x, x)))


add = jax.jit(_add, donate_argnums=0, static_argnames="summed")


@jax.jit
def joined(first: Running, second: Running) -> Running:
    """The mean of two sets of prompts (Chan, Golub and LeVeque 1979)."""
    total = first.weight + second.weight
    share = jnp.where(second.weight > 0, second.weight / jnp.where(total > 0, total, 1), 0)
    delta = second.mean - first.mean
    between = _squares(delta, delta) * first.weight * share
    mean = first.mean + share[:, None, None] * delta
    return Running(mean, total, first.prompts + second.prompts, first.spread + second.spread + between)
