"""Gates: what is left of an elementwise function where it is held, so that it is linear up to a constant."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gate_of(function: Callable[[Array], Array], x: Float[Array, "*items"]) -> Float[Array, "*items"]:
    """Finds `(function(x) - function(0)) / x`, number by number, with the derivatives of that; at 0 it is the derivative there.

    Nearer to 0 than the root of the rounding unit it is the derivative at half of `x`, which is the same to rounding: the quotient's own
    derivative is a difference of what is nearly equal there, divided by `x`.
    """
    near = jnp.abs(x) < float(jnp.finfo(x.dtype).eps) ** 0.5
    # Selected before they are computed with, too: the derivative of what is not selected would be NaN times 0.
    far, half = jnp.where(near, 1, x), jnp.where(near, x, 0) / 2
    secant = (function(far) - function(jnp.zeros_like(x))) / far
    return jnp.where(near, jax.jvp(function, (half,), (jnp.ones_like(x),))[1], secant)
