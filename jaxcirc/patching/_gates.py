"""Gates that are open, shut or between the two at random, with a gradient (hard concrete; Louizos et al. 2018, arXiv 1712.01312)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1  # as in the paper, §4: stretched beyond 0 and 1, where it is cut off


def sample(key: Array, log_alpha: Float[Array, "..."], count: int) -> Float[Array, "draw ..."]:
    """Draws every gate so many times, from 0, shut, to 1, open."""
    noise = jax.random.logistic(key, (count, *log_alpha.shape), log_alpha.dtype)
    return _stretched(jax.nn.sigmoid((noise + log_alpha) / TEMPERATURE))


def chance_open(log_alpha: Float[Array, "..."]) -> Float[Array, "..."]:
    """The probability that a gate is not shut."""
    return jax.nn.sigmoid(log_alpha - TEMPERATURE * jnp.log(-LOW / HIGH))


def _stretched(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.clip(LOW + (HIGH - LOW) * x, 0, 1)
