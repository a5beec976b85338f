"""Norms over the last axis."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide
from .._sites import Kind
from .._tap import Tap
from .._typing import Resid


class LayerNorm(eqx.Module):
    r"""`y = (x - mean x) / s * weight + bias` with `s = sqrt(var x + eps)`, over the last axis (Ba et al. 2016, arXiv 1607.06450).

    Without weights (`None`) it is TransformerLens' `LNPre`. Its scale `s` `[seq 1]` is a site, so that it can be frozen.
    """

    weight: Float[Array, " d_model"] | None
    bias: Float[Array, " d_model"] | None
    eps: float = eqx.field(static=True)
    sites: tuple[Kind, Kind] = eqx.field(static=True)  # of the scale and of the result

    def __call__(self, x: Resid, tap: Tap) -> Resid:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        scale = tap(self.sites[0], jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + self.eps))
        y = centred / scale
        if self.weight is not None:
            y = y * wide(self.weight)
        if self.bias is not None:
            y = y + wide(self.bias)
        return tap(self.sites[1], y)
