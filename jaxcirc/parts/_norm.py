"""Norms over the last axis or axes."""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide
from .._sites import Kind
from .._tap import Tap


class AbstractNorm(eqx.Module):
    """`y = centre(x) / s`, then a weight and a bias, with `s = sqrt(mean(centre(x)^2) + eps)`.

    Two values are sites: the scale `s`, so that it can be frozen, and `y`. What comes of `y` by weight and bias has a name where it is
    read, such as `attn.hook_in`.
    """

    eps: eqx.AbstractVar[float]
    sites: eqx.AbstractVar[tuple[Kind, Kind]]  # of the scale and of y

    def __call__(self, x: Float[Array, "seq ..."], tap: Tap) -> Float[Array, "seq ..."]:
        centred = self.centre(x)
        axes = tuple(range(1, x.ndim)) if self.joint else -1
        scale = tap(self.sites[0], jnp.sqrt(jnp.mean(centred**2, axis=axes, keepdims=True) + self.eps))
        return self.weigh(tap(self.sites[1], centred / scale))

    @property
    def joint(self) -> bool:
        """Whether the mean runs over all axes of a position, and not over the last alone."""
        return False

    @abstractmethod
    def centre(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """What is divided by the scale."""

    @abstractmethod
    def weigh(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Weight and bias, on values like `y`."""


class LayerNorm(AbstractNorm):
    r"""`y = (x - mean x) / s`, times `weight`, plus `bias`, with `s = sqrt(var x + eps)` (Ba et al. 2016, arXiv 1607.06450).

    Without weights (`None`) it is TransformerLens' `LNPre`.
    """

    weight: Float[Array, " d_model"] | None
    bias: Float[Array, " d_model"] | None
    eps: float = eqx.field(static=True)
    sites: tuple[Kind, Kind] = eqx.field(static=True)

    def centre(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x - jnp.mean(x, axis=-1, keepdims=True)

    def weigh(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        y = y if self.weight is None else y * wide(self.weight)
        return y if self.bias is None else y + wide(self.bias)


class RMSNorm(AbstractNorm):
    r"""`y = x / s`, times `offset + weight`, with `s = sqrt(mean x^2 + eps)` (Zhang and Sennrich 2019, arXiv 1910.07467).

    Without a weight (`None`) it is TransformerLens' `RMSPre`. A weight of two axes is that of all heads together, over which the mean
    runs, too. `offset` is what a model adds to the weight that it stores: 1 in Gemma, so that the stored array stays as it is.
    """

    weight: Float[Array, "..."] | None
    eps: float = eqx.field(static=True)
    sites: tuple[Kind, Kind] = eqx.field(static=True)
    offset: float = eqx.field(static=True, default=0.0)

    @property
    def joint(self) -> bool:
        return self.weight is not None and self.weight.ndim > 1

    def centre(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x

    def weigh(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        return y if self.weight is None else y * (self.offset + wide(self.weight))
