"""What results are compared with: forward-mode autodiff in float64, which JAX differentiates and NumPy carries out (`jaxcirc._by_numpy`).

So what results are measured by has in it no compiler, which has been wrong (`jaxcirc._guard`), and no accelerator that lacks float64. A GPU
has float64, and large arrays would take minutes on its host: there JAX carries it out, each operation compiled by itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._by_numpy import carry_out, most_made
from .._target import running_platform


LARGE = 2**20  # numbers that one operation makes: NumPy takes some hundredths of a second for them


def image_of(
    function: Callable[[Array], Array], at: Float[np.ndarray, "..."], tangent: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """The derivative of `function`, a pytree that is called, at `at` along `tangent`, which have one shape."""
    operands = function, np.asarray(at, np.float64), np.asarray(tangent, np.float64)
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        jaxpr = _derivative.trace(*jax.tree.map(_in_float64, operands)).jaxpr
        if running_platform() == "gpu" and most_made(jaxpr) > LARGE:
            with jax.disable_jit():
                return np.asarray(_derivative(*jax.tree.map(_widened, operands)))
        (image,) = carry_out(jaxpr, jax.tree.leaves(operands))
    return image


@jax.jit
def _derivative(function: Callable[[Array], Array], at: Array, tangent: Array) -> Array:
    return jax.jvp(function, (at,), (tangent,))[1]


def _in_float64(leaf: Array | np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, np.float64 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype)


def _widened(leaf: Array | np.ndarray) -> Array | np.ndarray:
    """Makes a float64 of a float, on the host, which compiles nothing."""
    return jax.device_put(np.asarray(leaf, np.float64)) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
