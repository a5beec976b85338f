"""The component graph, and runs in which its edges carry what they carry in another run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.graph import ComponentGraph

from .helpers import assert_close, model_named, MODELS


COUNTS = {
    "gpt2-small": ((12, 12, 12, True), 32_491),
    "qwen2.5-0.5b": ((24, 14, 14, True), 179_749),
    "gemma-2-2b": ((26, 8, 8, True), 74_218),
    "llama-3.1-8b": ((32, 32, 32, True), 1_592_881),
    "interpbench": ((6, 4, 4, True), 1_108),
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts_of_edges(name):
    numbers, count = COUNTS[name]
    assert ComponentGraph(*numbers, parallel=False).n_edges == count


def test_counts_with_projections_are_those_of_acdc():
    for numbers, counts in {(4, 8): (1_281, 1_377), (2, 8): (257, 305)}.items():
        layers, heads = numbers
        graph = ComponentGraph(layers, heads, heads, has_mlp=False, parallel=False)
        assert (graph.n_edges, graph.n_edges_with_projections) == counts
    neo = ComponentGraph(4, 16, 16, True, False)
    assert (neo.n_edges, neo.n_edges_with_projections) == (5_327, 5_519)


def problem(model, *, batch=2, seq=6, seed=1):
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, model.d_vocab, (batch, seq))
    corrupt = (clean + rng.integers(1, model.d_vocab, (batch, seq))) % model.d_vocab
    metric = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]))
    return jnp.asarray(clean), jnp.asarray(corrupt), metric


def metric_of(model, tokens, metric):
    one = lambda tokens, metric: metric(jc.run(model, tokens)[0])
    return jax.vmap(one)(tokens, metric)


GRAPHS = {"kv": {}, "each, biases": {"shared": "each", "biases": True}}


@pytest.mark.parametrize("options", GRAPHS)
@pytest.mark.parametrize("name", MODELS)
def test_all_kept_is_the_clean_run_and_none_the_corrupt(name, options):
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model, **GRAPHS[options])
    ends = jnp.stack([jnp.ones(graph.edges.shape, bool), jnp.zeros(graph.edges.shape, bool)])
    wanted = [np.asarray(metric_of(model, tokens, metric)) for tokens in (clean, corrupt)]
    for convention in ("tree", "edge"):
        got = jc.patch_edges(model, clean, corrupt, metric, ends, graph=graph, convention=convention)
        assert_close(got, np.stack(wanted))
    assert np.abs(wanted[0] - wanted[1]).min() > 1e-3
