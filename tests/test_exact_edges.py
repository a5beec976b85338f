"""The exact effect of every edge is what patching it by itself does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.runs import _windows

from .helpers import assert_close, counting_programs, make_model, model_named, MODELS
from .test_patch_edges import problem


def by_patching(model, clean, corrupt, metric, graph, **more):
    """`[batch …]`: a mask for each edge."""
    places = np.argwhere(graph.edges)
    keep = np.stack([graph.edges] * len(places))
    keep[(np.arange(len(places)), *places.T)] = False
    after = np.asarray(jc.patch_edges(model, clean, corrupt, metric, keep, graph=graph, **more))
    before = np.asarray(jc.patch_edges(model, clean, corrupt, metric, graph.edges, graph=graph, **more))
    found = np.zeros((len(before), *graph.edges.shape), after.dtype)
    found[(slice(None), *places.T)] = (after - before).T
    return found


@pytest.mark.parametrize("name", MODELS)
def test_all_edges_are_those_of_single_masks(name):
    model = model_named(name)
    given = problem(model)
    graph = jc.component_graph(model)
    assert_close(jc.patching.exact_edges(model, *given), by_patching(model, *given, graph))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "olmo2", "gemma3"])
def test_graphs_with_biases_and_heads_of_their_own(name):
    model = model_named(name)
    clean, _, metric = problem(model)
    graph = jc.component_graph(model, shared="each", biases=True)
    got = jc.patching.exact_edges(model, clean, None, metric, graph=graph, ablation=jc.Zero())
    assert_close(got, by_patching(model, clean, None, metric, graph, ablation=jc.Zero()))
    assert np.abs(got[:, graph.sender("a0.bias")]).max() > 1e-3


def test_positions_wanted_edges_and_groups():
    """At each position by itself; of three prompts, one at a time; and only what was asked for."""
    model = model_named("gpt2")
    clean, corrupt, _ = problem(model, batch=3, seq=4)
    given = clean, corrupt, jc.LogitDiff(np.array([1, 2, 3]), np.array([3, 4, 5]))
    graph = jc.component_graph(model, positions=4)
    want = by_patching(model, *given, graph)
    assert_close(jc.patching.exact_edges(model, *given, graph=graph), want)
    wanted = np.random.default_rng(0).random(graph.edges.shape) < 0.2
    got = jc.patching.exact_edges(model, *given, graph=graph, edges=wanted, budget=1)
    assert_close(got, np.where(wanted, want, 0))


def test_padding_changes_nothing():
    model = model_named("neox")
    clean, corrupt, _ = problem(model, seq=7)
    own = jc.LogitDiff(np.array([2]), np.array([4]))
    alone = jc.patching.exact_edges(model, clean[1:, :5], corrupt[1:, :5], own)
    mask = jnp.array([[True] * 7, [True] * 5 + [False] * 2])
    read = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]), position=np.array([6, 4]))
    assert_close(jc.patching.exact_edges(model, clean, corrupt, read, mask=mask)[1:], alone)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_windows_begin_where_prompts_differ(name, monkeypatch):
    """Nothing is run before the first position that differs, nor an edge that carries the same."""
    monkeypatch.setattr(_windows, "PROGRAMS", 1.0)
    model = model_named(name)
    clean, corrupt, metric = problem(model, seq=8)
    corrupt = corrupt.at[:, :3].set(clean[:, :3]).at[1].set(clean[1]).at[1, 6].set(corrupt[1, 6])
    sizes = []

    def counted(self, positions, size, caches):
        sizes.append(size)
        return window(self, positions, size, caches)

    window = _windows.Windows.window
    monkeypatch.setattr(_windows.Windows, "window", counted)
    graph = jc.component_graph(model, embeddings="split") if name == "gpt2" else jc.component_graph(model)
    got = jc.patching.exact_edges(model, clean, corrupt, metric, graph=graph)
    assert max(sizes) == 5
    assert min(sizes) == 2
    assert_close(got, by_patching(model, clean, corrupt, metric, graph))
    if name == "gpt2":
        assert not got[:, graph.sender("pos_embed")].any()


def test_edges_run_the_same_programs():
    """Whichever edges are wanted, and prompts of lengths padded to one."""
    model = make_model(jax.random.key(8), layers=3)
    graph = jc.component_graph(model)
    run = lambda seq, edges: jc.patching.exact_edges(model, *problem(model, seq=seq), edges=edges)
    run(5, graph.edges)
    with counting_programs() as programs:
        run(7, graph.edges)
    assert not programs


BAD = {
    "edges of another shape": ({"edges": np.ones((3, 3), bool)}, "edges: expected a mask [sender receiver]"),
    "edges that are numbers": ({"edges": np.ones((3, 3))}, "expected a mask of booleans"),
    "names of edges": ({"edges": ["embed->logits"]}, "got a list"),
    "no corrupt prompts": ({"corrupt": None}, "Give them, or an ablation"),
    "an ablation that is none": ({"ablation": "zero"}, "expected jc.Zero()"),
    "a budget": ({"budget": 0}, "at least 1"),
    "no graph": ({"graph": "own"}, "a graph as jc.component_graph(model) gives one"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    more, message = BAD[case]
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        jc.patching.exact_edges(model, **{"clean": clean, "corrupt": corrupt, "metric": metric, **more})
