"""Law: whatever the parts of a block are, every Jacobian is the derivative of a run. Closed forms are for the parts that registered one."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from ..helpers import assert_close, needs_x64, tokens_for
from ..odd_parts import ODD, odd_model
from ..oracle import edges as edges_by_definition, random_saes


pytestmark = needs_x64
at = ft.partial(Site, 1)
PRE, MID, POST, ATTN, MLP = map(at, (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST, Kind.ATTN_OUT, Kind.MLP_OUT))
SCALES = (at(Kind.LN1_SCALE), at(Kind.LN2_SCALE))

# source, target, held; and which of the MLP and attention lie between.
EDGES = {
    "attention": (PRE, ATTN, (), "a"),
    "attention, pattern held": (PRE, ATTN, (at(Kind.PATTERN),), "a"),
    "MLP": (MID, MLP, (), "m"),
    "MLP, scale held": (MID, MLP, SCALES[1:], "m"),
    "past the MLP": (MID, POST, (), "m"),
    "block": (PRE, POST, (), "am"),
    "block, scales held": (PRE, POST, SCALES, "am"),
    "neurons": (at(Kind.MLP_POST), POST, (), "m"),
    "into neurons": (PRE, at(Kind.MLP_PRE), (), "am"),
    "two blocks": (Site(0, Kind.RESID_PRE), POST, (), None),
    "from the heads": (at(Kind.Z), POST, (), "am"),
}


@ft.partial(jax.jit, static_argnames=("source", "target", "held"))
def derivative(model, tokens, *, source, target, held):
    """By forward mode of a run with the source moved."""

    def value(step):
        edits = {source: jc.Add(step), **{site: jc.Detach() for site in held}}
        return jc.run(model, tokens, edits=edits, record=[target])[1][target]

    return jax.jacfwd(value)(jnp.zeros_like(jc.run(model, tokens, record=[source])[1][source]))


def wanted(model, tokens, source, target, held):
    return np.asarray(derivative(model, tokens, source=source, target=target, held=held))


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", ODD)
def test_every_form_is_the_derivative_of_a_run(name, edge):
    model, (source, target, held, passes) = odd_model(name), EDGES[edge]
    tokens = tokens_for(model, 5)
    want = wanted(model, tokens, source, target, held)
    J = jc.edge(model, tokens, source, target, frozen=held)
    assert_close(J.as_matrix(), want)
    seq, n, _, width = want.reshape(want.shape[0], -1, want.shape[0], np.prod(J.source_shape[1:])).shape
    flat, rng = want.reshape(seq, n, seq, width), np.random.default_rng(0)
    for m, k in ((3, 7), (40, 9)):  # few rows, and more than columns
        left, right = (rng.normal(size=shape) for shape in ((m, n), (k, width)))
        left_pos, right_pos = rng.integers(0, seq, m), rng.integers(0, seq, k)
        forms = np.einsum("mt,mtks,ks->mk", left, flat[left_pos][:, :, right_pos], right)
        assert_close(
            J.contract(jnp.asarray(left), jnp.asarray(left_pos), jnp.asarray(right), jnp.asarray(right_pos)), forms
        )
    v, w = rng.normal(size=(2, *J.source_shape)), rng.normal(size=(2, *J.target_shape))
    assert_close(J.cols(jnp.asarray(v)), (want.reshape(seq * n, -1) @ v.reshape(2, -1).T).T.reshape(w.shape))
    assert_close(J.rows(jnp.asarray(w)), (w.reshape(2, -1) @ want.reshape(seq * n, -1)).reshape(v.shape))
    if passes is not None:
        _, mlp, attention = ODD[name]
        closed = (mlp or "m" not in passes) and (attention or "a" not in passes)
        assert jc.select(J, "contract") == ("structured" if closed else "autodiff") or edge == "from the heads"
    assert J.certificate(probes=1).error < 1e-10


@pytest.mark.parametrize("name", ODD)
def test_paths_sum_to_the_block(name):
    model = odd_model(name)
    if name == "class derived from Block":  # it does not add what its sublayers write, so there is nothing that sums
        return
    tokens = tokens_for(model, 5)
    paths = jc.block_paths(model, tokens, 1)
    assert set(paths) == {"skip", "attn", "mlp", "attn_mlp"}
    assert_close(sum(np.asarray(J.as_matrix()) for J in paths.values()), wanted(model, tokens, PRE, POST, ()))
    parts = {"attn": (PRE, ATTN), "mlp": (MID, MLP)}
    for path, ends in parts.items():
        assert_close(paths[path].as_matrix(), wanted(model, tokens, *ends, ()))


@pytest.mark.parametrize("name", ODD)
def test_a_parallel_block_with_odd_parts(name):
    if name == "class derived from Block":
        return
    model = odd_model(name, parallel=True)
    tokens = tokens_for(model, 5)
    for source, target in ((PRE, POST), (PRE, MLP), (PRE, ATTN), (at(Kind.Z), POST)):
        J = jc.edge(model, tokens, source, target)
        assert_close(J.as_matrix(), wanted(model, tokens, source, target, ()))


@pytest.mark.parametrize("name", ODD)
def test_edges_are_their_definition(name):
    model = odd_model(name)
    saes = random_saes(jax.random.key(1), model, alike=True)
    saes = {site: sae for site, sae in saes.items() if site.layer == 1 or site.kind == Kind.RESID_POST}
    clean, corrupt = tokens_for(model, 4), tokens_for(model, 4, seed=1)
    metric = jc.LogitDiff(2, 0)
    effects = jc.edge_effects(
        model,
        saes,
        clean[None],
        corrupt[None],
        metric,
        jc.node_effects(model, saes, clean[None], corrupt[None], metric, method=jc.Gradient()),
        threshold=0.0,
    )
    for pair in ((PRE_OF, ATTN), (ATTN, MLP), (MLP, POST), (PRE_OF, MLP)):
        want = edges_by_definition(model, saes, clean, corrupt, metric, *pair)
        assert_close(effects.dense(pair)[0], want, mass=1e-8)


PRE_OF = Site(0, Kind.RESID_POST)
