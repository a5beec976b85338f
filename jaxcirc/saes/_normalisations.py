"""What dictionaries do to their input first, and undo at the end."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class AbstractNormalisation(eqx.Module):
    """A position's shift and scale: the dictionary reads `(x - shift) / (scale + eps)` and its output is `y scale + shift`."""

    @abc.abstractmethod
    def shift(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        """What is subtracted, shape `x.shape[:-1]`."""

    @abc.abstractmethod
    def scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        """What is divided by, shape `x.shape[:-1]`."""

    def apply(self, x: Float[Array, "... d_in"]) -> Float[Array, "... d_in"]:
        return (x - self.shift(x)[..., None]) / (self.scale(x)[..., None] + self.eps)

    def undo(self, y: Float[Array, "... d_out"], x: Float[Array, "... d_in"]) -> Float[Array, "... d_out"]:
        return y * self.scale(x)[..., None] + self.shift(x)[..., None]

    eps: eqx.AbstractVar[float]


class Standardise(AbstractNormalisation):
    """Zero mean and unit variance, with the unbiased variance (SAELens' `layer_norm`, the OpenAI TopK autoencoders)."""

    eps: float = eqx.field(static=True, default=1e-5)

    def shift(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.mean(x, axis=-1)

    def scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.std(x, axis=-1, ddof=1)


class UnitNorm(AbstractNormalisation):
    """Norm `sqrt(d_in)` (SAELens' `constant_norm_rescale`)."""

    eps: float = eqx.field(static=True, default=0.0)

    def shift(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.zeros(x.shape[:-1], x.dtype)

    def scale(self, x: Float[Array, "... d_in"]) -> Float[Array, "..."]:
        return jnp.linalg.norm(x, axis=-1) / x.shape[-1] ** 0.5
