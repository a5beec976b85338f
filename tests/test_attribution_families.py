"""Node and edge effects on models of every family, with nodes before the norms that follow a sublayer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind
from tests.helpers import assert_close, needs_x64
from tests.test_attribution import one, problem


pytestmark = needs_x64

HEADS, NEURONS = (Kind.Z, Kind.MLP_OUT, Kind.RESID_POST), (Kind.ATTN_OUT, Kind.MLP_POST, Kind.RESID_POST)
INSIDE, SUBLAYERS = (Kind.Z, Kind.ATTN_OUT, Kind.MLP_POST), (Kind.Z, Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)
CASES = {
    "neox": ("neox", NEURONS),
    "llama": ("llama", HEADS),
    "qwen3": ("qwen3", INSIDE),
    "olmo2": ("olmo2", SUBLAYERS),
    "gemma2": ("gemma2", HEADS),  # where feature-circuits has its dictionaries
    "gemma2, neurons": ("gemma2", NEURONS),
    "gemma3": ("gemma3", INSIDE),
}


@pytest.fixture(scope="module", params=CASES)
def arguments(request):
    name, kinds = CASES[request.param]
    return problem(name, batch=2, kinds=kinds)


def differences(model, saes, clean, corrupt):
    record = jax.jit(jax.vmap(lambda model, tokens: jc.run(model, tokens, record=list(saes))[1], in_axes=(None, 0)))
    before, after = record(model, clean), record(model, corrupt)
    return {site: np.asarray(after[site] - before[site]) for site in saes}, before


@pytest.mark.parametrize("method", [jc.Gradient(), jc.IntegratedGradients(3)])
def test_gradients_are_those_of_runs_with_the_site_moved(arguments, method):
    """At the clean point or along the path of the site's own value, on which what enters the residual stream need not be a line."""
    model, saes, clean, corrupt, metric = arguments
    nodes = jc.node_effects(*arguments, method=method)
    change, _ = differences(model, saes, clean, corrupt)
    fractions, weights = method.points() if isinstance(method, jc.IntegratedGradients) else (np.zeros(1), np.ones(1))

    def gradient(model, tokens, metric, moved, site):
        value = lambda step: metric(jc.run(model, tokens, edits={site: jc.Add(step)})[0])
        return jax.grad(value)(moved)

    over = jax.jit(
        jax.vmap(jax.vmap(gradient, in_axes=(None, None, None, 0, None)), in_axes=(None, 0, 0, 0, None)),
        static_argnums=4,
    )
    for site in saes:
        moved = np.einsum("f,b...->bf...", fractions, change[site])
        found = np.asarray(over(model, clean, jax.tree.map(jnp.asarray, metric), moved, site))
        want = np.einsum("f,bf...->b...", weights, found).reshape(*clean.shape, -1)
        assert np.abs(want).max() > 1e-3
        flat = lambda x: x.reshape(*clean.shape, -1)
        total = (want * flat(change[site])).sum(
            -1
        )  # dictionaries are affine where latents keep their side of zero: compare the whole
        got = np.asarray(nodes.acts[site]).sum(-1) + np.asarray(nodes.error[site])
        assert_close(got, total)


def test_patching_is_a_run_with_the_node_changed(arguments):
    """Of the latents at the first site that has any which differ."""
    model, saes, clean, corrupt, metric = arguments
    nodes = jc.node_effects(*arguments, method=jc.ExactPatching())
    site = next(iter(saes))
    record = lambda tokens: jc.run(model, tokens, saes={site: saes[site]}, record=[site.acts])[1][site.acts]
    got, want = [], []
    for i in range(len(clean)):
        before, after = np.asarray(record(clean[i])), np.asarray(record(corrupt[i]))
        base = float(one(metric, i)(jc.run(model, clean[i])[0]))
        for position, unit in np.argwhere(before != after)[:3]:
            moved = jnp.asarray(before).at[position, unit].set(after[position, unit])
            edits = {site.acts: jc.Replace(moved)}
            value = float(one(metric, i)(jc.run(model, clean[i], saes={site: saes[site]}, edits=edits)[0]))
            got.append(np.asarray(nodes.acts[site])[i, position, unit])
            want.append(value - base)
    assert np.count_nonzero(want) > 2
    assert_close(got, want)


def test_edges_out_of_a_node_sum_to_its_effect(arguments):
    saes, nodes = arguments[1], jc.node_effects(*arguments, method=jc.Gradient())
    edges = jc.edge_effects(*arguments, nodes, threshold=0.0)
    for site in saes:
        out = [edges.dense(pair).sum((1, 2)) for pair in edges.coo if pair[0] == site]
        total = sum(out) + np.asarray(edges.to_metric.get(site, 0.0))
        want = np.asarray(nodes.nodes(site))
        assert np.abs(want).max() > 1e-4
        assert_close(total, want)
