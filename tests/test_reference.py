"""The reference of certificates, against what it must not need: compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcirc.jacobian import _reference
from jaxcirc.jacobian._reference import image_of

from .helpers import assert_close, counting_programs
from .test_dependence import ACTIVATIONS


WEIGHT = np.random.default_rng(1).standard_normal((4, 5, 5))
BY_NUMPY = {
    "products": lambda x: jnp.einsum("ba,hac,hdc,be->ehd", x, WEIGHT, WEIGHT, x**2),
    "one product": lambda x: jnp.einsum("bi,hij->hbj", x, WEIGHT),
    "inner products": lambda x: jnp.einsum("bi,bj->", x, x),
    "attention": lambda x: jax.nn.softmax(jnp.where(jnp.tri(3, dtype=bool), x @ x.T, -jnp.inf)) @ x,
    "norm": lambda x: (x - x.mean(1, keepdims=True)) * jax.lax.rsqrt(x.var(1, keepdims=True) + 1e-5),
    "choices": lambda x: jnp.clip(jnp.where(x > 0, x, -x**3), 0.1, 1.5) + jnp.maximum(x, 0.2) * jnp.minimum(x, 0.3),
    "choice of three": lambda x: jax.lax.select_n((x > 0).astype(np.int32) + (x > 1).astype(np.int32), x, x**2, jnp.exp(x)),
    "reductions": lambda x: x.max(0) + x.min(0) + x.prod(0) + jnp.where((x > 0).all(1).any(), x.sum(), 0.0),
    "running sums": lambda x: jnp.cumsum(x, axis=1) + jnp.cumsum(x[:, ::-1] ** 2, axis=0)
    + jax.lax.cumsum(x, axis=1, reverse=True) * jax.lax.cummax(x, axis=0),
    "shapes": lambda x: jnp.concatenate([x.T.reshape(3, 5), x[:, None, ::2].squeeze(1)[:, ::-1]], axis=1),
    "pieces": lambda x: jnp.split(x, [2, 3], axis=1)[2] * jax.lax.dynamic_slice(x, (-1, 2), (3, 2)),
    "padding": lambda x: jax.lax.pad(x, x[0, 0], [(1, 2, 1), (-1, 3, 0)]) + jax.lax.pad(x**2, 0.0, [(5, -1, 2), (6, -2, -0)])[:8, :7],
    "numbers": lambda x: x * (jnp.arange(5) // 2 + jnp.arange(-2, 3) % 2 ).astype(float) * jnp.isfinite(x).astype(float),
    "bits": lambda x: jnp.where((x > 0) & (x < 1) | ~(x > -1) ^ (x != 0), x, 2 * x) * jnp.where(x == 0, 1.0, x),
    "a loop": lambda x: jax.lax.scan(lambda c, r: (c * jnp.sin(r), c + r), x[0], x)[1],
    "a loop from the end": lambda x: jax.lax.scan(lambda c, r: (c * r, c), x[0], x, reverse=True)[1],
    "a loop of nothing": lambda x: jax.lax.scan(lambda c, r: (c * r, c), x[0], x[:0])[0] * x,
    "a loop that ends": lambda x: jax.lax.while_loop(lambda c: jnp.abs(c).max() < 9, lambda c: 2 * c * x.max(), x),
    "a case": lambda x: jax.lax.cond(x[0, 0] > 5, jnp.sin, jnp.cos, x),
    "a case of three": lambda x: jax.lax.switch(jnp.int32(7), [jnp.sin, jnp.cos, jnp.exp], x),
    "programs in programs": lambda x: jax.jit(lambda x: jax.checkpoint(jnp.sin)(x) * WEIGHT[0, 0])(x),
    "values that are held": lambda x: x * jax.lax.stop_gradient(x),
    "a barrier": lambda x: jax.lax.optimization_barrier((x, x**2))[1],
}  # fmt: skip
BY_JAX = {
    "sorting": lambda x: jnp.sort(x, axis=1) * x,
    "indices": lambda x: x[:, np.array([3, 0, 3])] * x.at[1].add(2.0)[0, 0],
    "solving": lambda x: jnp.linalg.solve(x @ x.T + jnp.eye(3), x),
    "rounding": lambda x: x * (jnp.round(x) + jnp.argmax(x, axis=1)[:, None].astype(float)),
}


def by_jax(function, at, tangent):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(lambda at, tangent: jax.jvp(function, (at,), (tangent,))[1])(at, tangent))


@pytest.mark.parametrize("name", [*BY_NUMPY, *BY_JAX])
def test_images_are_those_of_compiled_programs(name):
    rng = np.random.default_rng(0)
    function, at, tangent = (BY_NUMPY | BY_JAX)[name], *rng.standard_normal((2, 3, 5))
    with counting_programs() as programs:
        got = image_of(jax.tree_util.Partial(function), at, tangent)
    assert name in BY_JAX or not programs
    assert got.dtype == np.float64
    assert_close(got, by_jax(function, at, tangent), tolerance=1e-12)


def test_images_under_activations_and_under_their_derivatives():
    at, tangent = np.random.default_rng(0).uniform(0.1, 0.9, (2, 7))
    for function in ACTIVATIONS:
        for function in (function, lambda x, f=function: jax.jvp(f, (x,), (x,))[1]):  # noqa: B020
            want = by_jax(function, at, tangent)
            if np.abs(want).max() > 1e-6:
                assert_close(image_of(jax.tree_util.Partial(function), at, tangent), want, tolerance=1e-11)


def test_large_arrays_stay_on_a_gpu(monkeypatch):
    """Where float64 is the device's own, and NumPy would take minutes."""
    monkeypatch.setattr(_reference, "running_platform", lambda: "gpu")
    function = jax.tree_util.Partial(lambda W, x: jax.jit(lambda x: jnp.tanh(x @ W))(x), WEIGHT[0].astype(np.float32))
    at, tangent = np.random.default_rng(0).standard_normal((2, 7, 5))
    want, programs = image_of(function, at, tangent), {}
    for large in (34, 35):
        monkeypatch.setattr(_reference, "LARGE", large)
        with counting_programs() as programs[large]:
            assert_close(image_of(function, at, tangent), want, tolerance=1e-12)
    assert len(programs[34]) > 3
    assert not programs[35]
