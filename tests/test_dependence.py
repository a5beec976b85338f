"""What is read off a jaxpr, with the primitives that the JAX in use makes."""

import jax
import jax.numpy as jnp
import pytest

from jaxcirc._dependence import is_elementwise


ACTIVATIONS = (
    *(
        jax.nn.relu,
        jax.nn.relu6,
        jax.nn.gelu,
        jax.nn.silu,
        jax.nn.elu,
        jax.nn.selu,
        jax.nn.celu,
        jax.nn.softplus,
        jax.nn.mish,
    ),
    *(jax.nn.sigmoid, jax.nn.log_sigmoid, jax.nn.hard_tanh, jax.nn.hard_sigmoid, jax.nn.hard_silu, jax.nn.leaky_relu),
    *(
        jax.nn.soft_sign,
        jax.nn.squareplus,
        jax.lax.erf,
        jax.lax.erf_inv,
        jax.lax.lgamma,
        jax.lax.bessel_i1e,
        jax.lax.rsqrt,
    ),
    *(
        jnp.tanh,
        jnp.sin,
        jnp.arctan,
        jnp.sinh,
        jnp.exp,
        jnp.exp2,
        jnp.log1p,
        jnp.log2,
        jnp.cbrt,
        jnp.square,
        jnp.sinc,
        jnp.abs,
    ),
    lambda x: jax.nn.gelu(x, approximate=False),
    lambda x: x**3 / (1 + jnp.abs(x)) ** 1.5,
)


@pytest.mark.parametrize("times", [0, 1, 2])
def test_activations_and_their_derivatives_are_elementwise(times):
    """Parts without a closed form are differentiated by their own code, and what differentiates them is looked at too."""
    for function in ACTIVATIONS:
        for _ in range(times):
            function = lambda x, f=function: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]
        assert is_elementwise(function)


@pytest.mark.parametrize(
    "function",
    [jax.nn.softmax, jnp.cumsum, lambda x: x - x.mean(), lambda x: x[::-1], lambda x: jnp.sort(x, axis=1)],
)
def test_what_mixes_numbers_is_not(function):
    assert not is_elementwise(function)
