"""A norm whose scale is held is affine, and so are readings of what it makes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._norm import AbstractNorm


def pull_through_norm(
    norm: AbstractNorm, covectors: Float[Array, "*items d_model"]
) -> tuple[Float[Array, "*items d_model"], Float[Array, "*items"]]:
    """Pulls covectors of what a norm makes back to what it reads, as if it divided by 1: with its weight and its centring in them.

    **Returns:** the covectors there, and what each reads of the norm's bias.
    """
    nothing = jnp.zeros(covectors.shape[-1:], covectors.dtype)
    gain = jax.jvp(norm.weigh, (nothing,), (jnp.ones_like(nothing),))[1]  # the weight, with what a model adds to it
    # [… d_model] · [d_model] -> […]
    constant = jnp.einsum("...m,m->...", covectors, norm.weigh(nothing), precision=jax.lax.Precision.HIGHEST)
    return norm.centre(covectors * gain), constant  # to centre is a symmetric map: its transpose is itself
