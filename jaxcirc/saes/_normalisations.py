"""What dictionaries do to their input first, and undo at the end."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide, wide_dtype


class AbstractNormalisation(eqx.Module):
    """A position's shift and scale: the dictionary reads `(x - shift) / (scale + eps)` and its output is `y scale + shift`.

    A position without any scale (all entries equal, or all 0) is read as 0, where a quotient of zeros would be NaN.
    """

    eps: eqx.AbstractVar[float]

    @abc.abstractmethod
    def shift(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        """What is subtracted, shape `x.shape[:-1]`."""

    @abc.abstractmethod
    def scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        """What is divided by, shape `x.shape[:-1]`."""

    def apply(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_in"]:
        divisor, x = self.scale(x) + self.eps, wide(x)
        return (x - self.shift(x)[..., None]) / jnp.where(divisor == 0, 1, divisor)[..., None]

    def undo(self, y: Float[Array, "... d_out"], x: Float[Array, "... d_in"]) -> Float[Array, "... d_out"]:
        return wide(y) * self.scale(x)[..., None] + self.shift(x)[..., None]


class Standardise(AbstractNormalisation):
    """Zero mean and unit variance, with the unbiased variance (SAELens' `layer_norm`, the OpenAI TopK autoencoders)."""

    eps: float = eqx.field(static=True, default=1e-5)

    def shift(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.mean(wide(x), axis=-1)

    def scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return _sqrt(jnp.var(wide(x), axis=-1, ddof=1))


class UnitNorm(AbstractNormalisation):
    """Norm `sqrt(d_in)` (SAELens' `constant_norm_rescale`)."""

    eps: float = eqx.field(static=True, default=0.0)

    def shift(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.zeros(x.shape[:-1], wide_dtype(x.dtype))

    def scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return _sqrt(jnp.mean(wide(x) ** 2, axis=-1))


def _sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Takes the square root, with derivative 0 at 0, where that of `jnp.sqrt` is infinite and would turn a gradient into NaN."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
