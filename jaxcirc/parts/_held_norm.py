"""A norm whose scale is held is affine: vectors pass it, and readings of what it makes are readings of what it reads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import wide
from ._norm import LayerNorm, Norm


def centred(norm: Norm, x: Float[Array, "*items d_model"]) -> Float[Array, "*items d_model"]:
    """What a norm divides: a layer norm what is left without the mean, an RMS norm all."""
    return x - jnp.mean(x, axis=-1, keepdims=True) if isinstance(norm, LayerNorm) else x


def weighed(norm: Norm, y: Float[Array, "*items d_model"]) -> Float[Array, "*items d_model"]:
    """`y` by a norm's weight, with what a model adds to it, and without a bias."""
    if norm.weight is None:
        return y
    return y * (wide(norm.weight) if isinstance(norm, LayerNorm) else norm.offset + wide(norm.weight))


def push_through_norm(norm: Norm, vectors: Float[Array, "*items d_model"]) -> Float[Array, "*items d_model"]:
    """Pushes vectors of what a norm reads to what it makes, as if it divided by 1."""
    return weighed(norm, centred(norm, vectors))


def pull_through_norm(
    norm: Norm, covectors: Float[Array, "*items d_model"]
) -> tuple[Float[Array, "*items d_model"], Float[Array, "*items"]]:
    """Pulls covectors of what a norm makes back to what it reads, as if it divided by 1.

    **Returns:** the covectors there, and what each reads of the norm's bias.
    """
    constant = jnp.zeros_like(covectors[..., 0])
    if isinstance(norm, LayerNorm) and norm.bias is not None:
        # [… d_model] · [d_model] -> […]
        constant = jnp.einsum("...m,m->...", covectors, wide(norm.bias), precision=jax.lax.Precision.HIGHEST)
    return centred(norm, weighed(norm, covectors)), constant  # to centre is a symmetric map: its transpose is itself
