"""Edges that pass whole blocks on their way: against full Jacobians, however many blocks and whatever parts they have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution import _way_back
from jaxcirc.graph import wiring

from . import oracle
from .dictionaries import spliced_at
from .helpers import assert_close, counting_programs, make_model, model_named, needs_x64, tokens_for
from .odd_parts import odd_model


pytestmark = needs_x64
SEQ, BATCH = 4, 2
deep = lambda **more: make_model(jax.random.key(3), layers=4, **more)
CASES = {
    "MLPs": (deep, (Kind.MLP_OUT,)),
    "attention and MLPs": (deep, (Kind.ATTN_OUT, Kind.MLP_OUT)),
    "inside the sublayers": (deep, (Kind.Z, Kind.MLP_POST)),
    "keys behind queries too": (lambda: deep(causal=False), (Kind.MLP_OUT,)),
    "norms behind the sublayers": (lambda: model_named("gemma2"), (Kind.MLP_OUT,)),
    "keys by groups, rotated": (lambda: model_named("llama"), (Kind.ATTN_OUT,)),
    "side by side": (lambda: model_named("parallel"), (Kind.MLP_OUT,)),
    "an MLP that mixes positions": (lambda: odd_model("MLP that mixes positions"), (Kind.ATTN_OUT,)),
}


def problem(model, saes, seq=SEQ):
    clean = jnp.stack([tokens_for(model, seq, seed) for seed in range(BATCH)])
    corrupt = clean.at[:, jnp.asarray([1, -1])].add(1) % model.d_vocab
    return model, saes, clean, corrupt, jc.LogitDiff(jnp.arange(BATCH), jnp.arange(BATCH) + 2)


def edges_of(arguments, **more):
    nodes = jc.node_effects(*arguments, method=jc.Gradient(), mask=more.get("mask"))
    return jc.edge_effects(*arguments, nodes, threshold=0.0, **more)


def blocks_between(wire) -> int:
    end = wire.target.layer - (wire.target.kind == Kind.RESID_PRE)
    return end - (wire.source.layer + (wire.source.kind == Kind.RESID_POST))


def check(arguments, found, wires, parts=slice(None)):
    """Every entry for one prompt, or those between `parts` of the nodes at both ends."""
    model, saes, clean, corrupt, metric = arguments
    one = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[1]), metric)
    for wire in wires:
        want = oracle.edges(model, saes, clean[1], corrupt[1], one, wire.source, wire.target)
        got = found.dense((wire.source, wire.target))[1]
        assert_close(got[:, parts, :, parts], want[:, parts, :, parts])


@pytest.mark.parametrize("case", CASES)
def test_they_are_their_definition(case):
    make, kinds = CASES[case]
    model = make()
    arguments = problem(model, oracle.random_saes(jax.random.key(4), model, kinds, alike=True))
    wires = [wire for wire in wiring(model, arguments[1]) if blocks_between(wire)]
    furthest = max(wires, key=blocks_between)
    assert blocks_between(furthest) == model.n_layers - 1
    check(arguments, edges_of(arguments), {furthest: 0, wires[0]: 0, wires[-1]: 0})


def test_between_residual_streams_that_are_blocks_apart():
    model = deep()
    sites = [Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_MID), Site(3, Kind.RESID_POST)]
    saes = {site: oracle.random_sae(jax.random.key(i), site, model.d_model, 20) for i, site in enumerate(sites)}
    arguments = problem(model, saes)
    wires = wiring(model, saes)
    assert [blocks_between(wire) for wire in wires] == [1, 2]
    check(arguments, edges_of(arguments), wires)


@pytest.mark.parametrize("between", [None, Kind.RESID_PRE, Kind.RESID_POST])
@pytest.mark.parametrize("back", [0, 1, 2])
def test_into_transcoders_that_read_blocks_before(back, between):
    """The latents read where they read, and the error where the dictionary writes: on their way back both meet, or a node of the residual
    stream between holds what comes of the error.
    """
    model = deep()
    first, last = Site(0, Kind.MLP_OUT), Site(3, Kind.MLP_OUT)
    saes = {first: spliced_at("relu", model, first)}
    if between is not None:  # behind the block that is read, or two before it
        beside = Site(2 if between == Kind.RESID_PRE else 1, between)
        saes[beside] = spliced_at("relu", model, beside, 1)
    saes[last] = spliced_at("transcoder", model, last, 3, Site(3 - back, Kind.LN2_NORMALIZED))
    arguments = problem(model, saes)
    found = edges_of(arguments, certify=True)
    wires = wiring(model, saes)
    assert ((first, last) in {(wire.source, wire.target) for wire in wires}) == (between is None or back == 2)
    # Of what lies behind where it reads, the error alone has edges.
    read_before = [wire for wire in wires if wire.target != last or wire.source < saes[last].reads]
    check(arguments, found, read_before, slice(0, -1))
    nodes = jc.node_effects(*arguments, method=jc.Gradient())
    for site in saes:
        out = [found.dense(pair).sum((1, 2)) for pair in found.parts if pair[0] == site]
        direct = np.asarray(found.to_metric.get(site, 0.0))
        assert_close(np.sum(out, axis=0) + direct, nodes.nodes(site))


@pytest.mark.parametrize("edges", ["clean", "integrated"])
def test_padding_changes_nothing(edges):
    model = deep()
    arguments = problem(model, oracle.random_saes(jax.random.key(4), model, (Kind.MLP_OUT,), alike=True))
    _, saes, clean, corrupt, metric = arguments
    path = {"edges": edges, "path": jc.IntegratedGradients(2, "left", "corrupt")}
    padded = [jnp.pad(tokens, ((0, 0), (2, 0))) for tokens in (clean, corrupt)]
    mask = jnp.broadcast_to(jnp.arange(SEQ + 2) > 1, padded[0].shape)
    alone, behind = edges_of(arguments, **path), edges_of((model, saes, *padded, metric), mask=mask, **path)
    for pair in alone.parts:
        assert_close(behind.dense(pair)[:, 2:, :, 2:], alone.dense(pair))
        assert not behind.dense(pair)[:, :2].any()


@pytest.mark.parametrize("broken", ["spread_batch", "pull_batch", "meet_batch"])
def test_a_certificate_tells_what_is_wrong_on_the_way(broken, monkeypatch):
    model = deep()
    arguments = problem(model, oracle.random_saes(jax.random.key(4), model, (Kind.MLP_OUT,), alike=True))
    assert 0 < edges_of(arguments, certify=True).certificate.error < 1e-12
    right = getattr(_way_back, broken)
    monkeypatch.setattr(_way_back, broken, lambda *given: right(*given) * (1 + 1e-7))
    with pytest.raises(ValueError, match=r"The result is wrong: relative error \d\.\de-0[78]"):
        edges_of(arguments, certify=True)


def test_deep_models_run_the_same_programs():
    """However many blocks are between the ends of an edge; and each block is passed once for all sources before it."""
    counts, passed = [], []
    for layers in (3, 6):
        model = make_model(jax.random.key(0), layers=layers, d_mlp=28)
        sites = [Site(layer, Kind.MLP_OUT) for layer in range(layers)]
        arguments = problem(model, {site: spliced_at("relu", model, site, 3) for site in sites})
        nodes = jc.node_effects(*arguments, method=jc.Gradient())
        calls, pull = [], _way_back.pull_batch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                _way_back, "pull_batch", lambda *given, c=calls, f=pull: c.append(given[0].source) or f(*given)
            )
            patch.setattr("jaxcirc.attribution._contract._chunk_size", lambda *_, most: 128)  # all targets of a site
            jax.clear_caches()
            with counting_programs() as programs:
                found = jc.edge_effects(*arguments, nodes, threshold=0.0)
        assert len(found.parts) == layers * (layers - 1) / 2
        counts.append(len(programs))
        passed.append(sum(source.kind == Kind.RESID_PRE for source in calls))
    assert counts[0] == counts[1]
    assert passed == [1, 1 + 2 + 3 + 4]  # by the targets in the blocks behind the second


def test_few_targets_go_back_at_once_where_memory_is_little(monkeypatch):
    model = deep()
    arguments = problem(model, oracle.random_saes(jax.random.key(4), model, (Kind.MLP_OUT,), alike=True))
    want, rows, spread = edges_of(arguments), [], _way_back.spread_batch
    monkeypatch.setattr(_way_back, "spread_batch", lambda *given: rows.append(given[3].shape[1]) or spread(*given))
    one = 8 * SEQ * BATCH * model.d_model * 8  # as many positions or more are prompts padded to
    monkeypatch.setattr("jaxcirc.attribution._contract.allowance", lambda: 8 * one)
    found = edges_of(arguments)
    assert 1 <= max(rows) < 8
    for pair in want.parts:
        assert_close(found.dense(pair), want.dense(pair))
