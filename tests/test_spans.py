"""Long spans of blocks that run as a loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.models import _spans

from .helpers import assert_close, make_model, RMS_GATED, tokens_for


LAYERS = 11


@pytest.fixture(scope="module")
def deep():
    """Blocks that differ in window and frequencies, and one that differs in its structure."""
    windows, thetas = (3, None) * 5 + (3,), tuple(10.0 + layer for layer in range(LAYERS))
    model = make_model(
        jax.random.key(0), layers=LAYERS, d_model=8, d_head=6, d_mlp=10, windows=windows, thetas=thetas, **RMS_GATED
    )
    return model, tokens_for(model, 5)


def loops(J: jc.EdgeJacobian) -> int:
    jaxpr = jax.make_jaxpr(lambda J, v: J.product.segments[0](v))(J, jnp.zeros(J.source_shape, J.dtype))
    return str(jaxpr).count("scan[")


@pytest.mark.parametrize("frozen", [None, 9])
def test_a_span_is_a_loop_and_the_same(deep, frozen, monkeypatch):
    """All blocks, or those before one in which something is held; what is recorded at the ends is what is recorded anyway."""
    model, tokens = deep
    held = () if frozen is None else [Site(frozen, Kind.PATTERN)]
    ends = Site(0, Kind.LN1_NORMALIZED), Site(LAYERS - 1, Kind.MLP_POST)
    J = jc.edge(model, tokens, *ends, frozen=held, engine="autodiff")
    assert loops(J) == 1
    v = jnp.asarray(np.random.default_rng(0).normal(size=J.source_shape))
    w = jnp.asarray(np.random.default_rng(1).normal(size=J.target_shape))
    got = J.mv(v), J.T.mv(w)
    monkeypatch.setattr(_spans, "SPAN", 100)
    J = dataclasses.replace(J, product=jax.tree.map(lambda x: x, J.product))
    jax.clear_caches()
    assert loops(J) == 0
    for found, want in zip(got, (J.mv(v), J.T.mv(w)), strict=True):
        assert_close(found, want)


def test_short_spans_and_runs_are_not_loops(deep):
    model, tokens = deep
    J = jc.edge(model, tokens, Site(2, Kind.RESID_PRE), Site(8, Kind.RESID_POST), engine="autodiff")
    assert loops(J) == 0
    assert "scan[" not in str(jax.make_jaxpr(lambda model: jc.run(model, tokens)[0])(model))


def test_blocks_that_differ_end_a_span(deep):
    model, tokens = deep
    other = dataclasses.replace(model.blocks[1], ln1=None)
    model = dataclasses.replace(model, blocks=(model.blocks[0], other, *model.blocks[2:]))
    J = jc.edge(model, tokens, Site(0, Kind.RESID_PRE), Site(LAYERS - 1, Kind.RESID_POST), engine="autodiff")
    assert loops(J) == 1  # of the nine behind it
