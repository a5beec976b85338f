"""Edits: what each makes of a value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._edits import EditShapeError

from .helpers import assert_close, model_named, NEUTRAL_EDITS, tokens_for


X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
ROW = np.array([10.0, 20.0, 30.0])


@pytest.mark.parametrize(
    ("edit", "want"),
    [
        (lambda: jc.Replace(-X), -X),
        (lambda: jc.Replace(ROW), np.stack([ROW, ROW])),
        (lambda: jc.Replace(7.0), np.full_like(X, 7)),
        (lambda: jc.Add(X), 2 * X),
        (lambda: jc.Add(ROW), X + ROW),
        (lambda: jc.Add(0.5), X + 0.5),
        (lambda: jc.Blend(0.25, ROW), 0.75 * X + 0.25 * ROW),
        (lambda: jc.Blend(np.array([[True], [False]]), ROW), np.stack([ROW, X[1]])),
        (lambda: jc.Blend(np.array([1, 0, 1]), -X), X * [-1, 1, -1]),
        (lambda: jc.Detach(), X),
        (lambda: jc.Apply(jnp.sqrt), np.sqrt(X)),
        (lambda: jc.Apply(jc.Add(1.0)), X + 1),
        (lambda: jc.At(1, jc.Add(ROW)), X + np.stack([np.zeros(3), ROW])),
        (lambda: jc.At([-2], jc.Scale(3.0)), X * [[3], [1]]),
        (lambda: jc.At(slice(1, None), jc.Replace(-X)), X * [[1], [-1]]),
        (lambda: jc.At(slice(5, None), jc.Replace(-X)), X),
        (lambda: jc.At("prompt", jc.Replace(-X)), -X),
    ],
)
def test_known_answers(edit, want):
    x = jnp.asarray(X)
    got = edit()(x)
    assert got.dtype == x.dtype
    assert_close(got, jnp.asarray(want))


def test_edits_take_the_dtype_of_the_value():
    for edit in (jc.Replace(X), jc.Add(X), jc.Blend(0.5, X)):
        assert edit(jnp.zeros((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("name", NEUTRAL_EDITS)
def test_neutral_edits_are_exact(name):
    x = jnp.asarray(X).at[0, 1].set(-jnp.inf)
    np.testing.assert_array_equal(NEUTRAL_EDITS[name](x)(x), x)


def test_blend_keeps_infinities_out_of_the_sum():
    x = jnp.array([1.0, -jnp.inf, 2.0, -jnp.inf])
    value = jnp.array([3.0, 4.0, -jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(jc.Blend(1.0, value)(x), value)
    np.testing.assert_array_equal(jc.Blend(0.0, value)(x), x)
    np.testing.assert_array_equal(jc.Blend(0.5, value)(x), [2.0, -np.inf, 2.0, -np.inf])


def test_blend_does_not_hide_nan():
    assert jnp.isnan(jc.Blend(0.5, jnp.array([jnp.nan]))(jnp.array([jnp.nan]))).all()
    assert jnp.isnan(jc.Blend(1.0, jnp.array([jnp.nan]))(jnp.array([1.0]))).all()


def test_blend_derivatives():
    x, value = jnp.array([1.0, -jnp.inf, 2.0]), jnp.array([3.0, 4.0, -jnp.inf])
    mask = jnp.zeros(3)
    finite = lambda y: jnp.where(jnp.isfinite(y), y, 0)
    total = lambda mask, x, value: jnp.sum(jnp.array([1.0, 10.0, 100.0]) * finite(jc.Blend(mask, value)(x)))
    by_mask, by_x, by_value = jax.grad(total, argnums=(0, 1, 2))(mask, x, value)
    np.testing.assert_array_equal(by_mask, [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(by_x, [1.0, 0.0, 100.0])
    np.testing.assert_array_equal(by_value, [0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("edit", "want"),
    [
        (lambda: jc.Replace(ROW), 0.0),
        (lambda: jc.Detach(), 0.0),
        (lambda: jc.Add(ROW), 1.0),
        (lambda: jc.Blend(0.25, ROW), 0.75),
        (lambda: jc.Apply(lambda x: 3 * x), 3.0),
    ],
)
def test_derivatives_by_the_value(edit, want):
    gradient = jax.grad(lambda x: edit()(x).sum())(jnp.asarray(X))
    np.testing.assert_array_equal(gradient, np.full_like(X, want))


def test_a_sweep_is_a_vmap_over_a_mask():
    masks = jnp.eye(3)
    swept = jax.vmap(lambda mask: jc.Blend(mask, 0.0)(jnp.asarray(X)))(masks)
    assert_close(swept, X[None] * (1 - np.eye(3))[:, None])


def test_apply_keeps_the_arrays_of_a_function():
    scale = jax.tree_util.Partial(jnp.multiply, jnp.asarray(2.0))
    assert len(jax.tree.leaves(jc.Apply(scale))) == 1
    assert len(jax.tree.leaves(jc.Apply(jc.Add(ROW)))) == 1
    assert jax.tree.leaves(jc.Apply(jnp.sin)) == []


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda: jc.Replace(np.ones((3, 2))),
            r"Replace's value has shape \(3, 2\); give it an array of shape \(2, 3\)",
        ),
        (lambda: jc.Add(np.ones((1, 2, 3))), r"Add's value has shape \(1, 2, 3\)"),
        (lambda: jc.Blend(np.ones(2), ROW), r"Blend's mask has shape \(2,\)"),
        (lambda: jc.Blend(1.0, np.ones((5, 3))), r"Blend's value has shape \(5, 3\)"),
    ],
)
def test_wrong_shapes(edit, message):
    with pytest.raises(EditShapeError, match=message):
        edit()(jnp.asarray(X))


@pytest.mark.usefixtures("untyped")
def test_apply_takes_functions_only():
    with pytest.raises(TypeError, match=r"a function of one array, got <lambda>\(value, hook\)\. A hook of another"):
        jc.Apply(lambda value, hook: value)
    with pytest.raises(TypeError, match=r"Expected a function of an array, got a int"):
        jc.Apply(3)


def test_an_edit_at_positions_of_queries_and_what_it_refuses(untyped):
    model = model_named("gpt2")
    tokens, pattern = tokens_for(model), "blocks.1.attn.hook_pattern"
    seen = lambda edit: jc.run(model, tokens, edits={pattern: edit}, record=[pattern])[1][pattern]
    clean, got = seen(jc.Scale(1.0)), seen(jc.At(slice(5, None), jc.Scale(0.5)))
    assert_close(got, clean * jnp.where(jnp.arange(7) >= 5, 0.5, 1)[:, None])
    jitted = jax.jit(lambda edit: jc.run(model, tokens, edits={pattern: edit}, record=[pattern])[1][pattern])
    assert_close(jitted(jc.At(slice(5, None), jc.Scale(0.5))), got)
    assert jc.At(np.int64(3), jc.Add(1.0)).pos == [3]
    assert jc.At(slice(-2, None), jc.Add(1.0)).pos == slice(-2, None)
    with pytest.raises(
        ValueError, match=r"at `blocks.1.attn.hook_pattern`, At's position 7 is outside: there are 0 to 6"
    ):
        seen(jc.At(7, jc.Scale(0.5)))
    with pytest.raises(ValueError, match=r"At acts at the new tokens alone, and in a run of a prompt none is new"):
        seen(jc.At("new", jc.Scale(0.5)))
    with pytest.raises(ValueError, match=r"an edit keeps the shape"):
        seen(jc.At(1, jc.Apply(lambda x: x[0])))
    for pos in (1.5, "last", [], slice(0.5, None), True, None):
        with pytest.raises(TypeError, match=r"expected a position, a list of them, a slice of whole numbers"):
            jc.At(pos, jc.Scale(0.5))
    with pytest.raises(ValueError, match=r"the step of a slice is at least 1"):
        jc.At(slice(None, None, -1), jc.Scale(0.5))
    for inner in (3.0, jc.At(1, jc.Scale(0.5))):
        with pytest.raises(TypeError, match=r"At: expected an edit, got"):
            jc.At(1, inner)
