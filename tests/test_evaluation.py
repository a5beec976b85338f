"""Circuits run without the rest of the model: by nodes and by edges, against loops written from the definitions."""

import dataclasses
import functools as ft
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.circuits import _runs
from jaxcirc.cli._bench import load
from jaxcirc.graph import reaches_output, wiring
from jaxcirc.saes import anonymous
from tests.helpers import assert_close, needs_x64
from tests.test_attribution import one, problem

from .helpers import by_numpy


pytestmark = needs_x64
coverage = load("coverage")
KINDS = (Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)


@pytest.fixture(scope="module")
def arguments():
    return problem(batch=3, seq=4, kinds=KINDS)


def circuit_of(arguments, nodes, edges=()):
    """A circuit from `(site, unit, pos)`s and pairs of their names."""
    model, saes = arguments[:2]
    table = pd.DataFrame(
        [(name_of(node), str(node[0]), node[1], "latent", node[2], 1.0) for node in nodes],
        columns=["node", "site", "unit", "kind", "pos", "effect"],
    ).astype({"pos": "Int64"})
    ends = pd.DataFrame([(*edge, 1.0) for edge in edges], columns=["source", "target", "weight"])
    origins = {str(site): sae.origin for site, sae in saes.items()}
    return jc.Circuit(table, ends, {"model": model.name, "dictionaries": origins})


def name_of(node):
    site, unit, pos = node
    return f"{site}/{unit}" + ("" if pos is None else f"@{pos}")


def some_nodes(arguments, share, *, seq=None, seed=0):
    """A share of each site's latents, at each position, and the errors of some: as many everywhere, so that sites share programs."""
    rng = np.random.default_rng(seed)
    nodes = []
    for site, sae in arguments[1].items():
        for pos in [None] if seq is None else range(seq):
            latents = rng.permutation(sae.d_sae)[: round(share * sae.d_sae)]
            nodes += [(site, int(unit), pos) for unit in latents]
        errors = (
            [None] * int(rng.random() < max(0.5, share)) if seq is None else rng.permutation(seq)[: seq // 2].tolist()
        )
        nodes += [(site, sae.d_sae, pos) for pos in errors]
    return nodes


def all_edges(arguments, nodes):
    """Every direct edge between the nodes, and to the metric."""
    model, saes = arguments[:2]
    at = {site: [name_of(node) for node in nodes if node[0] == site] for site in saes}
    edges = [pair for wire in wiring(model, saes) for pair in itertools.product(at[wire.source], at[wire.target])]
    return edges + [(name, "metric") for site in reaches_output(model, saes) for name in at[site]]


@jax.jit
def nodes_of(model, saes, tokens):
    """Latents and errors of every site, `[batch seq …]`."""
    _, cache = jax.vmap(lambda tokens: jc.run(model, tokens, record=list(saes)))(tokens)
    acts = {site: sae.encode(cache[site]) for site, sae in saes.items()}
    return {site: (acts[site], cache[site] - saes[site].decode(acts[site])) for site in saes}


def reference(arguments, ablation):
    """The ablated values of all prompts, `[batch seq …]`, by hand."""
    model, saes, _, corrupt, _ = arguments
    values = jax.tree.map(np.asarray, nodes_of(model, saes, corrupt))
    if ablation == "mean":
        return jax.tree.map(lambda x: np.broadcast_to(x.mean(0), x.shape), values)
    return jax.tree.map(np.zeros_like, values)


@jax.jit
def metric_of_nodes(model, saes, tokens, metric, keep, others):
    """Sites in turn, each encoded from what comes out of the ones before: no splicing, plain edits of the value."""

    def overwrite(x, site):
        acts = saes[site].encode(x)
        error = x - saes[site].decode(acts)
        mask, (other_acts, other_error) = keep[site], others[site]
        acts = jnp.where(mask[:, :-1], acts, other_acts)
        return saes[site].decode(acts) + jnp.where(mask[:, -1:], error, other_error)

    edits = {site: jc.Apply(ft.partial(overwrite, site=site)) for site in saes}
    return metric(jc.run(model, tokens, edits=edits)[0])


def by_nodes(arguments, keep, values):
    """The metric of each prompt with all nodes but those of `keep` overwritten by `values`."""
    model, saes, clean, _, metric = arguments
    of = lambda i: jax.tree.map(lambda x: x[i], values)
    return np.array(
        [float(metric_of_nodes(model, saes, row, one(metric, i), keep, of(i))) for i, row in enumerate(clean)]
    )


def masks(arguments, nodes, seq=4):
    keep = {site: np.zeros((seq, sae.d_sae + 1), bool) for site, sae in arguments[1].items()}
    for site, unit, pos in nodes:
        keep[site][slice(None) if pos is None else pos, unit] = True
    return keep


ABLATIONS = {"mean": jc.MeanAblation(), "zero": jc.ZeroAblation()}


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("seq", [None, 4])
def test_nodes_are_overwritten_site_by_site(arguments, ablation, seq):
    nodes, values = some_nodes(arguments, 0.4, seq=seq), reference(arguments, ablation)
    found = jc.evaluate(circuit_of(arguments, nodes), *arguments, ablation=ABLATIONS[ablation])
    keep = masks(arguments, nodes)
    runs = {
        "full": {site: np.ones_like(mask) for site, mask in keep.items()},
        "circuit": keep,
        "empty": {site: np.zeros_like(mask) for site, mask in keep.items()},
        "complement": {site: ~mask for site, mask in keep.items()},
    }
    for name, mask in runs.items():
        assert_close(found.per_prompt[name], by_nodes(arguments, mask, values))
    assert len({round(float(values.mean()), 9) for values in found.per_prompt.values()}) == 4
    scale = found.m_full - found.m_empty
    assert found.faithfulness == pytest.approx((found.m_circuit - found.m_empty) / scale)
    assert found.completeness == pytest.approx((found.m_complement - found.m_empty) / scale)


def test_layers_and_errors_that_are_left_alone(arguments):
    nodes, values = some_nodes(arguments, 0.4), reference(arguments, "mean")
    circuit = circuit_of(arguments, nodes)
    keep = masks(arguments, nodes)
    late = jc.evaluate(circuit, *arguments, start_layer=1)
    early = {site: np.ones_like(mask) if site.layer == 0 else mask for site, mask in keep.items()}
    assert_close(late.per_prompt["circuit"], by_nodes(arguments, early, values))
    for errors, kept in (("keep", True), ("remove", False)):
        found = jc.evaluate(circuit, *arguments, errors=errors)
        for name, mask in (("circuit", keep), ("complement", {site: ~mask for site, mask in keep.items()})):
            with_errors = {site: np.concatenate([m[:, :-1], np.full((4, 1), kept)], axis=1) for site, m in mask.items()}
            assert_close(found.per_prompt[name], by_nodes(arguments, with_errors, values))


@pytest.mark.parametrize("seq", [None, 4])
def test_all_edges_between_its_nodes_are_the_nodes(arguments, seq):
    """With every edge between them, nodes read what they read when the rest is overwritten."""
    nodes = some_nodes(arguments, 0.4 if seq is None else 0.1, seq=seq, seed=1)
    circuit = circuit_of(arguments, nodes, all_edges(arguments, nodes))
    by_node = jc.evaluate(circuit, *arguments)
    by_edge = jc.evaluate(circuit, *arguments, level="edges")
    for name in ("full", "circuit", "empty"):
        assert_close(by_edge.per_prompt[name], by_node.per_prompt[name])
    assert abs(by_edge.m_circuit - by_edge.m_empty) > 1e-2


def test_all_and_no_edges(arguments):
    everything = some_nodes(arguments, 2.0)
    whole = jc.evaluate(circuit_of(arguments, everything, all_edges(arguments, everything)), *arguments, level="edges")
    assert_close(whole.per_prompt["circuit"], whole.per_prompt["full"])
    assert whole.faithfulness == pytest.approx(1.0)
    nothing = jc.evaluate(circuit_of(arguments, []), *arguments, level="edges")
    assert_close(nothing.per_prompt["circuit"], nothing.per_prompt["empty"])
    assert_close(nothing.per_prompt["complement"], nothing.per_prompt["full"])
    assert abs(nothing.m_full - nothing.m_empty) > 1e-2


def test_the_whole_model_is_run_without_dictionaries(arguments, monkeypatch):
    """Dictionaries are most of the work of a run: three of the four runs take them."""
    run, by_nodes = [], _runs.by_nodes
    monkeypatch.setattr(_runs, "by_nodes", lambda *given: run.append(None) or by_nodes(*given))
    found = jc.evaluate(circuit_of(arguments, some_nodes(arguments, 0.4)), *arguments)
    assert len(run) == 3
    assert_close(
        found.per_prompt["full"],
        jc.evaluate(circuit_of(arguments, some_nodes(arguments, 2.0)), *arguments).per_prompt["circuit"],
    )


def by_edges(arguments, nodes, edges, values, *, complement):
    """Every node of every prompt from a run of its own, with the values that its edges carry put in at all sources."""
    model, saes, clean, _, metric = arguments
    feeds = {}
    for wire in wiring(model, saes):
        feeds.setdefault(wire.target, []).append(wire.source)
    kept, bare = set(edges), {site: anonymous(sae) for site, sae in saes.items()}
    out = []
    for i, tokens in enumerate(clean):
        now = {}

        def value(source, target, now=now, i=i):
            acts, error = (np.array(x) for x in (now[source][0], now[source][1]))
            other_acts, other_error = (np.asarray(x[i]) for x in values[source])
            for unit in range(saes[source].d_sae + 1):
                carries = ((name_of((source, unit, None)), target) in kept) != complement
                if not carries and unit < saes[source].d_sae:
                    acts[:, unit] = other_acts[:, unit]
                elif not carries:
                    error = other_error
            return decode(bare[source], acts) + error

        def at(target, site, value=value, tokens=tokens):
            sources = feeds.get(site, []) if site else list(reaches_output(model, saes))
            edits = {source: jc.Replace(value(source, target)) for source in sources}
            return run(model, tokens, edits, site)

        for site in sorted(saes):
            sae, member = saes[site], {node[1] for node in nodes if node[0] == site}
            acts, error = (np.array(x[i]) for x in values[site])
            for unit in range(sae.d_sae + 1):
                if not complement and unit not in member:
                    continue
                x = at(name_of((site, unit, None)), site)
                mine = encode(bare[site], x)
                if unit < sae.d_sae:
                    acts[:, unit] = mine[:, unit]
                else:
                    error = x - decode(bare[site], mine)
            now[site] = (acts, error)
        out.append(float(one(metric, i)(at("metric", None))))
    return np.array(out)


@by_numpy
def _values(model, tokens, edits):
    logits, cache = jc.run(
        model, tokens, edits=edits, record=[s for s in jc.sites(model) if s.kind in (*KINDS, Kind.RESID_PRE)]
    )
    return logits, cache


encode = jax.jit(lambda sae, x: sae.encode(x))
decode = jax.jit(lambda sae, acts: sae.decode(acts))


def run(model, tokens, edits, site):
    logits, cache = _values(model, tokens, edits)
    return np.asarray(cache[site]) if site else logits


@pytest.mark.parametrize("complement", [False, True])
def test_every_edge_carries_its_own(arguments, complement):
    """Against one run a node, of the whole model."""
    nodes = some_nodes(arguments, 0.4, seed=2)
    rng = np.random.default_rng(3)
    edges = [edge for edge in all_edges(arguments, nodes) if rng.random() < 0.5]
    found = jc.evaluate(circuit_of(arguments, nodes, edges), *arguments, level="edges")
    want = by_edges(arguments, nodes, edges, reference(arguments, "mean"), complement=complement)
    assert_close(found.per_prompt["complement" if complement else "circuit"], want)
    assert np.abs(want - found.per_prompt["full"]).max() > 1e-3
    assert np.abs(want - found.per_prompt["empty"]).max() > 1e-3


def test_batches_change_nothing(arguments):
    nodes = some_nodes(arguments, 0.4, seed=1)
    circuit = circuit_of(arguments, nodes, all_edges(arguments, nodes)[::2])
    whole, parts = (jc.evaluate(circuit, *arguments, level="edges", batch_size=size) for size in (None, 2))
    for name, values in whole.per_prompt.items():
        assert_close(parts.per_prompt[name], values)
    seen = []
    jc.evaluate(circuit, *arguments, batch_size=2, progress=lambda *event: seen.append(event))
    assert seen == [(0, 2, "nodes"), (1, 2, "nodes"), (2, 2, "nodes")]


def test_resampling_takes_another_prompts_values(arguments):
    circuit = circuit_of(arguments, some_nodes(arguments, 0.3))
    found = [jc.evaluate(circuit, *arguments, ablation=jc.ResampleAblation(seed)) for seed in (0, 0, 1)]
    assert_close(found[0].per_prompt["circuit"], found[1].per_prompt["circuit"])
    own = nodes_of(*arguments[:2], arguments[3])
    nothing = masks(arguments, [])
    shuffles = [by_nodes(arguments, nothing, jax.tree.map(lambda x, by=by: np.roll(x, by, 0), own)) for by in (1, 2)]
    assert any(np.allclose(found[0].per_prompt["empty"], want) for want in shuffles)


def test_a_confidence_interval(arguments):
    found = jc.evaluate(circuit_of(arguments, some_nodes(arguments, 0.4)), *arguments)
    low, high = found.interval()
    assert low < found.faithfulness < high
    assert found.interval() == (low, high)
    assert found.interval(level=0.5)[0] > low
    with pytest.raises(ValueError, match="of must be 'faithfulness' or 'completeness'"):
        found.interval("m_full")
    assert found.as_dict()["faithfulness_interval"] == [low, high]
    alone = [jc.Evaluation({name: np.delete(x, i) for name, x in found.per_prompt.items()}, {}) for i in range(3)]
    for of in ("faithfulness", "completeness"):  # Student's t of 2 at 0.975 is 4.3027
        without = np.array([getattr(part, of) for part in alone])
        error = (2 / 3 * ((without - without.mean()) ** 2).sum()) ** 0.5
        low, high = found.interval(of)
        assert high - low == pytest.approx(2 * 4.302653 * error, rel=1e-6)
        assert low + high == pytest.approx(2 * getattr(found, of))
    first = jc.Evaluation({name: x[:1] for name, x in found.per_prompt.items()}, {})
    assert np.isnan(first.interval()).all()
    assert first.as_dict()["completeness_interval"] == [None, None]


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("kind", coverage.METRICS)
def test_the_interval_holds_the_truth_as_often_as_it_says(kind, n):
    """Of 1000 draws, whose standard error is 0.7 of 100; where prompts are few and skewed it is a little too narrow."""
    held, _ = coverage.of_faithfulness(kind, n, 1000, percentiles=False)
    assert 0.90 < held < 0.995


@pytest.mark.usefixtures("untyped")
def test_an_ablation_of_another_kind(arguments):
    circuit = circuit_of(arguments, some_nodes(arguments, 0.3))
    with pytest.raises(TypeError, match=r"expected jc.MeanAblation\(\), .* got a OLS"):
        jc.evaluate(circuit, *arguments, ablation=jc.OLS())


def test_bad_input(arguments):
    model, saes, clean, corrupt, metric = arguments
    circuit = circuit_of(arguments, some_nodes(arguments, 0.3))
    other = circuit.annotate(model="another")
    with pytest.raises(ValueError, match="The circuit is of another, and the model is random"):
        jc.evaluate(other, *arguments)
    other = circuit.annotate(dictionaries={str(site): "elsewhere" for site in saes})
    with pytest.raises(ValueError, match=r"at `blocks\.0\.hook_attn_out` with elsewhere"):
        jc.evaluate(other, *arguments)
    for name, value, message in (
        ("level", "latents", "level must be 'nodes' or 'edges'"),
        ("errors", "drop", "evaluate: errors must be 'default' or 'keep' or 'remove', got 'drop'"),
        ("start_layer", 9, "start_layer is from 0 to 2"),
        ("batch_size", 0, "evaluate: batch_size is how many prompts are run at once, at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jc.evaluate(circuit, *arguments, **{name: value})
    with pytest.raises(ValueError, match="errors='keep' is of level='nodes'"):
        jc.evaluate(circuit, *arguments, level="edges", errors="keep")
    with pytest.raises(ValueError, match="there is one prompt"):
        jc.evaluate(circuit, model, saes, clean[:1], corrupt[:1], one_prompt(metric), ablation=jc.ResampleAblation())
    with pytest.raises(ValueError, match="so there is nothing to explain"):
        jc.evaluate(circuit, *arguments, start_layer=2)
    late = circuit_of(arguments, some_nodes(arguments, 0.3, seq=9))
    short = circuit_of(arguments, some_nodes(arguments, 0.3, seq=2)).annotate(length=2)
    with pytest.raises(ValueError, match="the positions of prompts of 2 tokens apart, and these have 4"):
        jc.evaluate(short, *arguments)
    with pytest.raises(ValueError, match="nodes at position 8, and the prompts have 4 tokens"):
        jc.evaluate(late, *arguments)
    dangling = dataclasses.replace(
        circuit, edges=pd.DataFrame([("a", "metric", 1.0)], columns=["source", "target", "weight"])
    )
    with pytest.raises(ValueError, match="an edge a -> metric, and no node a"):
        jc.evaluate(dangling, *arguments, level="edges")


def one_prompt(metric):
    return jax.tree.map(lambda x: x[:1], metric)


@pytest.mark.parametrize("name", ["gpt-neo", "parallel", "neox", "llama", "olmo2", "gemma2"])
def test_other_models_and_wirings(name):
    """Dictionaries on the outputs of heads and on hidden layers, of different kinds; a local window; blocks side by side."""
    kinds = (Kind.Z, Kind.MLP_POST) if name == "gpt-neo" else KINDS
    arguments = problem(name, batch=3, seq=4, kinds=kinds)
    nodes = some_nodes(arguments, 0.4, seed=4)
    circuit = circuit_of(arguments, nodes, all_edges(arguments, nodes))
    by_node, by_edge = (jc.evaluate(circuit, *arguments, level=level) for level in ("nodes", "edges"))
    assert_close(by_edge.per_prompt["circuit"], by_node.per_prompt["circuit"])
    assert abs(by_edge.m_circuit - by_edge.m_empty) > 1e-3
    assert Site(0, kinds[0]) in arguments[1]
    found = jc.discover(*arguments, node_threshold=0.005, edge_threshold=0.0005, method=jc.IntegratedGradients(2))
    assert len(found.nodes) > 5 < len(found.edges)
    recovered = jc.evaluate(found, *arguments)
    assert abs(recovered.faithfulness - 1) < abs(jc.evaluate(circuit, *arguments).faithfulness - 1)


@pytest.fixture(scope="module")
def found(arguments):
    return jc.discover(*arguments, node_threshold=0.005, edge_threshold=0.0005, method=jc.Gradient())


def test_parts_of_a_circuit(found):
    part = found.above(node_threshold=0.05, edge_threshold=0.02)
    assert 0 < len(part.nodes) < len(found.nodes)
    assert (part.nodes["effect"].abs() > 0.05).all()
    names = {*part.nodes["node"], "metric"}
    inside = found.edges[found.edges["source"].isin(names) & found.edges["target"].isin(names)]
    assert len(part.edges) == (inside["weight"].abs() > 0.02).sum() > 0
    assert found.above().nodes.equals(found.nodes)

    rest = found.difference(part)
    assert not set(zip(rest.edges["source"], rest.edges["target"], strict=True)) & set(
        zip(part.edges["source"], part.edges["target"], strict=True)
    )
    whole = part.merge(rest)
    assert set(whole.nodes["node"]) == set(found.nodes["node"])
    assert len(whole.edges) == len(found.edges)
    with pytest.raises(ValueError, match="The circuits differ in their model: random and other"):
        found.merge(found.annotate(model="other", fingerprints=None))
    with pytest.raises(ValueError, match=r"no node 'blocks\.9/1'"):
        found.subgraph(["blocks.9/1"])


def test_paths_are_the_strongest(found):
    networkx = pytest.importorskip("networkx")
    part = found.above(node_threshold=0.3, edge_threshold=0.1)
    graph = part.to_networkx()
    assert networkx.is_directed_acyclic_graph(graph)
    source = next(row.source for row in part.edge_rows() if networkx.has_path(graph, row.source, "metric"))
    weakest = lambda path: min((graph.edges[edge]["weight"] for edge in itertools.pairwise(path)), key=abs)
    every = sorted(
        (weakest(path) for path in networkx.all_simple_paths(graph, source, "metric")), key=abs, reverse=True
    )
    paths = part.paths(source, most=5)
    assert [weight for _, weight in paths] == every[:5]
    assert all(weakest(path) == weight and path[0] == source and path[-1] == "metric" for path, weight in paths)
    assert graph.nodes[source]["effect"] == next(row.effect for row in part.node_rows() if row.node == source)
    with pytest.raises(ValueError, match="no node 'x'"):
        part.paths("x")


@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_a_recovery_curve(arguments, found, level):
    curve = jc.recovery_curve(found, *arguments, level=level, thresholds=[0.0, 0.05])
    column = "node_threshold" if level == "nodes" else "edge_threshold"
    for row in curve.itertuples():
        part = found.above(**{column: row.threshold})
        want = jc.evaluate(part, *arguments, level=level)
        assert (row.nodes, row.edges) == (len(part.nodes), len(part.edges))
        assert row.faithfulness == pytest.approx(want.faithfulness)
        assert row.low <= row.faithfulness <= row.high
    assert curve["random"][0] == pytest.approx(curve["faithfulness"][0])  # all of them: nothing is left to chance
    assert curve["random"][1] != pytest.approx(curve["faithfulness"][1])
    default = jc.recovery_curve(found, *arguments, thresholds=None)
    assert default["nodes"][0] == len(found.nodes)
    assert (np.diff(default["nodes"]) < 0).all()


def test_a_curve_of_one_prompt_has_no_interval(arguments, found, tmp_path):
    model, saes, clean, corrupt, metric = arguments
    given = model, saes, clean[:1], corrupt[:1], one_prompt(metric)
    curve = jc.recovery_curve(found, *given, thresholds=[0.0, 0.05])
    assert curve["low"].isna().all()
    (axes,) = jc.draw_curves({"by nodes": curve}, tmp_path / "curve.svg").axes
    assert "nan" not in (tmp_path / "curve.svg").read_text("utf-8").lower()
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert {"faithfulness", "completeness", "random"} <= {*lines}
    assert lines["faithfulness"].tolist() == pytest.approx(curve["faithfulness"][curve["nodes"] > 0].tolist())
    assert not axes.collections, "no band"
    assert axes.get_xlabel() == "nodes kept\none prompt has no interval"
