"""Norms over the last axis or axes.

Two values of a norm are sites: its scale, so that it can be frozen, and what it divides by that. What comes of this by weight and bias has
a name where it is read, such as `attn.hook_in`.
"""

from typing import TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide
from .._sites import Kind
from .._tap import Tap


class LayerNorm(eqx.Module):
    r"""`y = (x - mean x) / s`, times `weight`, plus `bias`, with `s = sqrt(var x + eps)` (Ba et al. 2016, arXiv 1607.06450).

    Without weights (`None`) it is TransformerLens' `LNPre`. `sites` are those of `s` and of `y`.
    """

    weight: Float[Array, " d_model"] | None
    bias: Float[Array, " d_model"] | None
    eps: float = eqx.field(static=True)
    sites: tuple[Kind, Kind] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "seq d_model"], tap: Tap) -> Float[Array, "seq d_model"]:
        y = _divided(self, x - jnp.mean(x, axis=-1, keepdims=True), -1, tap)
        y = y if self.weight is None else y * wide(self.weight)
        return y if self.bias is None else y + wide(self.bias)


class RMSNorm(eqx.Module):
    r"""`y = x / s`, times `offset + weight`, with `s = sqrt(mean x^2 + eps)` (Zhang and Sennrich 2019, arXiv 1910.07467).

    Without a weight (`None`) it is TransformerLens' `RMSPre`. A weight of two axes is that of all heads together, over which the mean
    runs, too. `offset` is what a model adds to the weight that it stores: 1 in Gemma, so that the stored array stays as it is. `sites` are
    those of `s` and of `y`.
    """

    weight: Float[Array, "..."] | None
    eps: float = eqx.field(static=True)
    sites: tuple[Kind, Kind] = eqx.field(static=True)
    offset: float = eqx.field(static=True, default=0.0)

    def __call__(self, x: Float[Array, "seq ..."], tap: Tap) -> Float[Array, "seq ..."]:
        y = _divided(self, x, tuple(range(1, x.ndim)) if self.joint else -1, tap)
        return y if self.weight is None else y * (self.offset + wide(self.weight))

    @property
    def joint(self) -> bool:
        """Whether the mean runs over all axes of a position, and not over the last alone."""
        return self.weight is not None and self.weight.ndim > 1


Norm: TypeAlias = LayerNorm | RMSNorm


def _divided(norm: Norm, x: Float[Array, "seq ..."], axes: int | tuple[int, ...], tap: Tap) -> Float[Array, "seq ..."]:
    """Divides by the root of the mean square over `axes`, with both as sites."""
    scale = tap(norm.sites[0], jnp.sqrt(jnp.mean(x**2, axis=axes, keepdims=True) + norm.eps))
    return tap(norm.sites[1], x / scale)
