"""Node and edge effects on models of every family, with nodes before the norms that follow a sublayer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind
from tests import oracle
from tests.helpers import assert_close, needs_x64
from tests.test_attribution import metric_of_run, one, problem


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


METHODS = [jc.Gradient(), jc.IntegratedGradients(3)]
POINTS, WEIGHTS = METHODS[1].points()
FRACTIONS = np.array([0.0, *POINTS])
WEIGHED = {METHODS[0]: np.eye(len(FRACTIONS))[0], METHODS[1]: np.array([0.0, *WEIGHTS])}


@jax.jit
def slopes(model, tokens, metric, moves):
    """Gradients of the metric with respect to what is added at each site, of several runs with `moves` `{site: [run …]}`."""
    value = lambda moves: metric(jc.run(model, tokens, edits={site: jc.Add(x) for site, x in moves.items()})[0])
    return jax.vmap(jax.grad(value))(moves)


@pytest.fixture(scope="module")
def walked(arguments):
    """Of each site the difference `[batch seq width]`, and the gradient `[batch fraction seq width]` with the site alone moved so far."""
    model, saes, clean, corrupt, metric = arguments
    sites = list(saes)
    change = {site: [] for site in sites}
    gradient = {site: [] for site in sites}
    for i in range(len(clean)):
        before, after = (oracle.record(model, tokens[i], {}, sites) for tokens in (clean, corrupt))
        moves = {site: np.zeros((len(sites), len(FRACTIONS), *x.shape), x.dtype) for site, x in before.items()}
        for row, site in enumerate(sites):
            moves[site][row] = np.multiply.outer(FRACTIONS, after[site] - before[site])
        found = slopes(model, clean[i], one(metric, i), {s: x.reshape(-1, *x.shape[2:]) for s, x in moves.items()})
        for row, site in enumerate(sites):
            change[site].append(np.asarray(after[site] - before[site]).reshape(clean.shape[1], -1))
            here = np.asarray(found[site]).reshape(len(sites), len(FRACTIONS), clean.shape[1], -1)
            gradient[site].append(here[row])
    return {site: (np.stack(change[site]), np.stack(gradient[site])) for site in sites}


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_those_of_runs_with_the_site_moved(arguments, walked, method):
    """At the clean point or along the path of the site's own value, on which what enters the residual stream need not be a line."""
    nodes = jc.node_effects(*arguments, method=method)
    for site, (change, gradient) in walked.items():
        want = np.einsum("f,bfsw->bsw", WEIGHED[method], gradient)
        assert np.abs(want).max() > 1e-3
        # Dictionaries are affine where latents keep their side of zero: the whole is compared.
        got = np.asarray(nodes.acts[site]).sum(-1) + np.asarray(nodes.error[site])
        assert_close(got, (want * change).sum(-1))


def test_patching_is_a_run_with_the_node_changed(arguments):
    """Of the latents at the first site that has any which differ."""
    model, saes, clean, corrupt, metric = arguments
    nodes = jc.node_effects(*arguments, method=jc.ExactPatching())
    site = next(iter(saes))
    saes = {site: saes[site]}
    got, want = [], []
    for i in range(len(clean)):
        before, after = (
            np.asarray(oracle.record(model, tokens[i], saes, [site.acts])[site.acts]) for tokens in (clean, corrupt)
        )
        value = lambda acts, i=i: metric_of_run(
            model, saes, clean[i], one(metric, i), {site.acts: jc.Replace(jnp.asarray(acts))}
        )
        for position, unit in np.argwhere(before != after)[:3]:
            moved = before.copy()
            moved[position, unit] = after[position, unit]
            got.append(np.asarray(nodes.acts[site])[i, position, unit])
            want.append(float(value(moved) - value(before)))
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
