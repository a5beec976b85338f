"""Edges of attribution graphs against interventions: with everything held they are the same numbers."""

import dataclasses

import jax
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution_graphs import Change
from tests import oracle
from tests.helpers import assert_close, counting_calls, make_model, model_named, MODELS, needs_x64, tokens_for
from tests.replacements import graph_of, numbers_of, random_cross_layer


WHOLE = {"node_threshold": 1.0, "edge_threshold": 1.0, "max_nodes": None}


def check_law(table, graph):
    """Predicted is measured, for latents of every layer that has any, and for logits."""
    kinds = graph.nodes["kind"].to_numpy()[table["target"].to_numpy()]
    assert len(table)
    assert "logit" in kinds
    assert_close(table["measured"], table["predicted"])
    for kind in set(kinds):
        here = kinds == kind
        if np.abs(table["predicted"][here]).max() > 1e-3:
            assert_close(table["measured"][here], table["predicted"][here])


@needs_x64
@pytest.mark.parametrize("name", MODELS)
def test_with_everything_held_an_edge_is_what_happens(name):
    graph, model, transcoders = graph_of(name)
    nodes = numbers_of(graph, "latent", layer=0)
    table = jc.check_graph(graph, model, transcoders, nodes[:: max(1, len(nodes) // 4)], strengths=(0.0, 2.5))
    check_law(table, graph)
    strength, edge = table["strength"], table["edge"]
    assert_close(table["predicted"], (strength - 1) * edge)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "parallel", "gemma2"])
def test_neurons_and_latents_that_write_to_later_layers(name):
    model = model_named(name)
    for transcoders in (None, random_cross_layer(jax.random.key(3), model, skip=True)):
        graph = jc.attribution_graph(model, transcoders, tokens_for(model, 6), **WHOLE)
        nodes = numbers_of(graph, "latent", layer=0, pos=2)[:3]
        check_law(jc.check_graph(graph, model, transcoders, nodes), graph)


@needs_x64
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_dictionaries_that_read_what_they_stand_for(name):
    """What an MLP makes is read with its gates held."""
    model = model_named(name)
    saes = oracle.random_saes(jax.random.key(4), model, (Kind.ATTN_OUT, Kind.MLP_OUT))
    del saes[Site(0, Kind.RESID_PRE)]
    graph = jc.attribution_graph(model, saes, tokens_for(model, 6), **WHOLE)
    nodes = [numbers_of(graph, "latent", layer=0, pos=pos)[-1] for pos in (1, 3)]
    check_law(jc.check_graph(graph, model, saes, nodes), graph)


@needs_x64
@pytest.mark.parametrize("act", [jax.nn.softplus, jax.numpy.cos])
def test_activation_functions_that_are_not_0_at_0(act):
    """What they are at 0 is a bias of the MLP, which its gates have no part in; a neuron's gate at 0 is the slope there."""
    model = make_model(jax.random.key(5), act=act)
    mlp = model.blocks[1].mlp
    silent = dataclasses.replace(mlp, W_in=mlp.W_in.at[:, 3].set(0), b_in=mlp.b_in.at[3].set(0))
    blocks = (model.blocks[0], dataclasses.replace(model.blocks[1], mlp=silent))
    model = dataclasses.replace(model, blocks=blocks)
    tokens = tokens_for(model, 6)
    saes = oracle.random_saes(jax.random.key(4), model, (Kind.ATTN_OUT, Kind.MLP_OUT))
    del saes[Site(0, Kind.RESID_PRE)]
    for given in (saes, None):
        graph = jc.attribution_graph(model, given, tokens, **WHOLE)
        assert_close(graph.adjacency.sum(axis=1)[graph.targets], graph.values[graph.targets])
        nodes = [numbers_of(graph, "latent", layer=0, pos=pos)[-1] for pos in (1, 3)]
        check_law(jc.check_graph(graph, model, given, nodes), graph)


@needs_x64
def test_with_live_latents_small_changes_are_predicted_to_first_order():
    """Patterns and norms held, latents that stay on are linear: where no latent switches, paths by way of latents are exact."""
    graph, model, transcoders = graph_of("gpt2-inverse-layer-scale")
    nodes = numbers_of(graph, "latent", layer=0, pos=3)[:3]
    table = jc.check_graph(graph, model, transcoders, nodes, strengths=(1.0 + 1e-6,), live_from=1)
    assert_close(
        table["measured"], table["predicted"], tolerance=1e-6, mass=1e-8
    )  # a difference of nearly equal numbers
    direct = jc.check_graph(graph, model, transcoders, nodes, strengths=(1.0 + 1e-6,))
    assert np.abs(table["predicted"] - direct["predicted"]).max() > 1e-8
    everything = jc.check_graph(graph, model, transcoders, nodes, strengths=(2.0,), frozen=(), live_from=0)
    assert np.abs(everything["measured"] - everything["predicted"]).max() > 1e-3


@needs_x64
def test_measured_is_what_intervening_shows():
    graph, model, transcoders = graph_of("qwen3")
    (node,) = numbers_of(graph, "latent", layer=0, pos=2)[:1]
    row = graph.nodes.iloc[node]
    tokens = jax.numpy.asarray(graph.meta["tokens"])
    change = Change(row["site"], int(row["pos"]), int(row["unit"]), jc.Scale(0.0))
    run = jc.intervene(model, transcoders, tokens, [change], frozen=(), live_from=1)
    table = jc.check_graph(graph, model, transcoders, [node], strengths=[0.0], frozen=(), live_from=1)
    for target, measured in zip(table["target"], table["measured"], strict=True):
        of = graph.nodes.iloc[target]
        if of["kind"] == "latent":
            at = Site.parse(of["site"]), int(of["pos"]), int(of["unit"])
            moved = run.changed.pre[at[0]][at[1:]] - run.clean.pre[at[0]][at[1:]]
            assert measured == pytest.approx(float(moved), abs=1e-10)


@needs_x64
def test_a_pruned_graph_and_one_of_directions():
    model = model_named("gpt2")
    graph, _, transcoders = graph_of("gpt2")
    pruned = graph.prune(node_threshold=0.5, edge_threshold=0.8)
    table = jc.check_graph(pruned, model, transcoders)
    assert_close(table["measured"], table["predicted"])
    assert (table["edge"] == 0).any()
    targets = {"difference": jc.LogitDiff(2, 5)}
    graph = jc.attribution_graph(model, transcoders, tokens_for(model, 6), targets=targets, max_nodes=20)
    table = jc.check_graph(graph, model, transcoders)
    assert "logit" in set(graph.nodes["kind"][table["target"]])
    assert_close(table["measured"], table["predicted"])


@needs_x64
@pytest.mark.parametrize("way", ["computed", "pruned", "loaded"])
def test_a_graph_keeps_its_directions(way, tmp_path):
    """With their constants: verbs of the graph ask for none again."""
    model = model_named("gpt2")
    model = dataclasses.replace(model, b_U=jax.numpy.linspace(-1.0, 1.0, len(model.b_U)))
    tokens, direction = tokens_for(model, 6), np.linspace(-1, 1, model.d_model)
    for targets in ({"difference": jc.LogitDiff(2, 5), "mine": direction}, direction[None]):
        graph = jc.attribution_graph(model, None, tokens, targets=targets, **WHOLE)
        if way == "pruned":
            graph = graph.prune()
        if way == "loaded":
            graph.save(tmp_path / "graph.safetensors")
            graph = jc.AttributionGraph.load(tmp_path / "graph.safetensors")
        ends = numbers_of(graph, "logit")
        assert len(ends) == len(targets)
        nodes = numbers_of(graph, "latent", layer=0)[:2]
        table = jc.check_graph(graph, model, None, nodes)
        found = table[table["target"].isin(ends)]
        assert len(found) == 2 * len(nodes) * len(ends)
        assert_close(found["measured"], found["predicted"])
        edges = [(end, nodes[0]) for end in ends]
        loadings = jc.head_loadings(graph, model, None, edges)
        rows = graph.whole.rows[-len(ends) :, graph.kept[nodes[0]]]
        assert (loadings.values == rows).all()
        assert np.abs(loadings.heads[:, 1]).max() > 1e-8
        assert jc.explain_edge(graph, model, None, *edges[0]).value == loadings.values[0]


def test_a_file_from_before_graphs_kept_directions():
    model = model_named("gpt2")
    graph = jc.attribution_graph(model, None, tokens_for(model, 6), targets={"mine": jc.LogitDiff(2, 5)}, max_nodes=5)
    old = dataclasses.replace(graph, whole=dataclasses.replace(graph.whole, directions=None))
    with pytest.raises(ValueError, match="the graph explains directions, and its file is from before graphs kept them"):
        jc.check_graph(old, model, None)


def test_a_graph_of_a_padded_prompt_is_read_from_json(tmp_path):
    """Its position embeddings are counted from its first real token."""
    model = model_named("gpt2")
    mask = jax.numpy.array([False, True, True, True, True, False])
    graph = jc.attribution_graph(model, None, tokens_for(model, 6), mask=mask, **{**WHOLE, "max_nodes": 9})
    assert "position" in set(graph.nodes["kind"])
    graph.to_json(tmp_path / "graph.json", tokens=list("abcdef"))
    again = jc.AttributionGraph.from_json(tmp_path / "graph.json")
    assert again.nodes[["kind", "pos", "unit"]].equals(graph.nodes[["kind", "pos", "unit"]])
    nodes = numbers_of(graph, "latent", layer=0)[:1]
    want, got = (jc.check_graph(each, model, None, nodes, strengths=[0.0]) for each in (graph, again))
    assert_close(got["predicted"], want["predicted"])
    assert np.abs(got["measured"]).max() > 1e-6


def test_json_does_not_hold_directions(tmp_path):
    model = model_named("gpt2")
    graph = jc.attribution_graph(model, None, tokens_for(model, 6), targets={"mine": jc.LogitDiff(2, 5)}, max_nodes=5)
    graph.to_json(tmp_path / "graph.json", tokens=list("abcdef"))
    again = jc.AttributionGraph.from_json(tmp_path / "graph.json")
    with pytest.raises(ValueError, match="the graph explains directions, and JSON does not hold them"):
        jc.check_graph(again, model, None)


def test_other_nodes_run_the_same_program():
    graph, model, transcoders = graph_of("gpt2")
    nodes = numbers_of(graph, "latent", layer=0, pos=2)
    jc.check_graph(graph, model, transcoders, nodes[:2])
    with counting_calls(jc.Transformer, "__call__") as calls:
        jc.check_graph(graph, model, transcoders, nodes[2:4])
    assert not calls


def test_what_checking_refuses(untyped):
    graph, model, transcoders = graph_of("gpt2")
    token = numbers_of(graph, "token")[0]
    with pytest.raises(ValueError, match=rf"check_graph: node {token} is of kind token; what can be moved are latents"):
        jc.check_graph(graph, model, transcoders, [token])
    with pytest.raises(ValueError, match=r"the graph has nodes 0 to \d+, the rows of graph.nodes; got 100000"):
        jc.check_graph(graph, model, transcoders, [100000])
    with pytest.raises(ValueError, match="no node was named"):
        jc.check_graph(graph, model, transcoders, [])
    with pytest.raises(ValueError, match="strengths: expected at least one number"):
        jc.check_graph(graph, model, transcoders, strengths=[])
    other = dataclasses.replace(model, W_E=model.W_E * 1.1)
    with pytest.raises(ValueError, match="This graph is of random, and not of the random that was given"):
        jc.check_graph(graph, other, transcoders)
    with pytest.raises(ValueError, match="is not among those of its prompt with these dictionaries"):
        jc.check_graph(graph, model, None)
    with pytest.raises(TypeError, match=r"check_graph: graph: expected a graph, as jc.attribution_graph gives one"):
        jc.check_graph("graph", model, transcoders)  # pyright: ignore[reportArgumentType]
