"""Circuits: found, saved, drawn; and everything that can be wrong with what they are given."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._fingerprint import fingerprint
from jaxcirc.circuits import annotate_latents, describe_latents
from tests import oracle
from tests.helpers import as_dtype, assert_close, needs_x64
from tests.test_attribution import problem


pytestmark = needs_x64
CUTS = {"node_threshold": 0.05, "edge_threshold": 0.02}


@pytest.fixture(scope="module")
def arguments():
    return problem(batch=3, seq=4)


@pytest.fixture(scope="module")
def circuit(arguments):
    return jc.discover(*arguments, **CUTS)


@pytest.fixture(scope="module")
def by_position(arguments):
    return jc.discover(*arguments, **CUTS, aggregate="none").annotate(
        tokens=["a<b", "&", "c", "d"], title="A <circuit>"
    )


def expected(arguments, aggregate):
    """Nodes and edges from the per-prompt verbs, averaged by hand."""
    nodes = jc.node_effects(*arguments)
    edges = jc.edge_effects(*arguments, nodes, threshold=-1.0)
    over = (0, 1) if aggregate == "sum" else (0,)
    batch = edges.batch
    mean_nodes = {site: np.asarray(nodes.nodes(site)).sum(over) / batch for site in arguments[1]}
    axes = (0, 1, 3) if aggregate == "sum" else (0,)
    return mean_nodes, {pair: edges.dense(pair).sum(axes) / batch for pair in edges.coo}


@pytest.mark.parametrize("aggregate", ["sum", "none"])
def test_a_circuit_is_the_mean_above_the_thresholds(arguments, circuit, by_position, aggregate):
    got = circuit if aggregate == "sum" else by_position
    saes = arguments[1]
    mean_nodes, mean_edges = expected(arguments, aggregate)

    def name(site, index):
        unit = "error" if index[-1] == saes[site].d_sae else index[-1]
        return f"{site}/{unit}" + ("" if aggregate == "sum" else f"@{index[0]}")

    want = {
        name(site, index): float(mean[tuple(index)])
        for site, mean in mean_nodes.items()
        for index in np.argwhere(np.abs(mean) > CUTS["node_threshold"])
    }
    assert dict(zip(got.nodes["node"], got.nodes["effect"], strict=True)) == pytest.approx(want, rel=1e-10)
    assert len(want) > 20

    half = 1 if aggregate == "sum" else 2
    want_edges = {
        (name(source, index[half:]), name(target, index[:half])): float(mean[tuple(index)])
        for (source, target), mean in mean_edges.items()
        for index in np.argwhere(np.abs(mean) > CUTS["edge_threshold"])
    }
    want_edges = {ends: weight for ends, weight in want_edges.items() if want.keys() >= set(ends)}
    inside = got.edges[got.edges["target"] != "metric"]
    assert dict(
        zip(zip(inside["source"], inside["target"], strict=True), inside["weight"], strict=True)
    ) == pytest.approx(want_edges)
    assert len(want_edges) > 20


def test_the_last_nodes_feed_the_metric(circuit):
    """Nothing stands between the last residual stream and the metric, so an edge to it is the node's whole effect."""
    effect = dict(zip(circuit.nodes["node"], circuit.nodes["effect"], strict=True))
    to_metric = circuit.edges[circuit.edges["target"] == "metric"]
    assert len(to_metric) > 3
    for edge in to_metric.itertuples():
        assert edge.source.startswith("blocks.1.hook_resid_post/")
        assert edge.weight == pytest.approx(effect[edge.source])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_do_not_change_the_result(arguments, circuit, batch_size):
    again = jc.discover(*arguments, **CUTS, batch_size=batch_size)
    assert list(again.nodes["node"]) == list(circuit.nodes["node"])
    assert_close(again.nodes["effect"], circuit.nodes["effect"])
    weights = lambda c: {(e.source, e.target): e.weight for e in c.edge_rows()}
    assert weights(again) == pytest.approx(weights(circuit))


def same_circuit(got, want):
    assert set(got.nodes["node"]) == set(want.nodes["node"])
    effects = lambda c: {node.node: node.effect for node in c.node_rows()}
    weights = lambda c: {(e.source, e.target): e.weight for e in c.edge_rows()}
    assert len(weights(want)) > 20
    assert effects(got) == pytest.approx(effects(want))
    assert weights(got) == pytest.approx(weights(want))


@pytest.mark.parametrize("more", [{}, {"thresholds": "instances"}], ids=str)
def test_gradients_that_do_not_fit_are_found_again(arguments, more, monkeypatch):
    want = jc.discover(*arguments, **CUTS, **more)
    monkeypatch.setattr("jaxcirc.circuits._means.KEEP", 5000)  # of three batches, none or some
    same_circuit(jc.discover(*arguments, **CUTS, **more, batch_size=1), want)


class Once:
    """Batches that exist only while they are looked at."""

    def __init__(self, prompts, size):
        self.prompts, self.size, self.given = prompts, size, 0

    def __len__(self):
        return -(-len(self.prompts) // self.size)

    def __iter__(self):
        for start in range(0, len(self.prompts), self.size):
            self.given += 1
            yield self.prompts[start : start + self.size]


def test_a_stream_of_batches_gives_what_all_together_give(arguments, circuit):
    model, saes, clean, corrupt, metric = arguments
    prompts = jc.data.Prompts(clean, corrupt, metric.answer, metric.foil, {"end": jnp.full(3, 3)})
    stream = Once(prompts, 2)
    found = jc.discover_batches(model, saes, stream, **CUTS)
    same_circuit(found, circuit)
    assert stream.given == 4  # two passes
    assert found.meta["prompts"] == 3
    numbers = ("clean_metric", "total_effect", "completeness", "largest_edge")
    assert all(found.meta[name] == pytest.approx(circuit.meta[name]) for name in numbers)
    differing = {name for name in circuit.meta if found.meta[name] != circuit.meta[name]}
    assert differing <= {*numbers, "certificate"}
    assert found.meta.metric == "LogitDiff"
    other = jc.discover_batches(model, saes, [prompts], **CUTS, metric=lambda p: jc.LogProb(p.answer))
    assert other.meta["clean_metric"] < 0
    with pytest.raises(ValueError, match=r"There are no batches of prompts\. Give a list"):
        jc.discover_batches(model, saes, [], **CUTS)
    short = jc.data.Prompts(clean[:, :3], corrupt[:, :3], metric.answer, metric.foil, {"end": jnp.full(3, 2)})
    with pytest.raises(
        ValueError, match=r"discover_batches: aggregate='none' .* there are prompts of 3 and of 4 tokens"
    ):
        jc.discover_batches(model, saes, [prompts, short], **CUTS, aggregate="none")
    with pytest.raises(
        TypeError, match=r"discover_batches: batches: number 1: expected prompts, as jc.data.Prompts holds"
    ):
        jc.discover_batches(model, saes, [prompts, clean], **CUTS)
    nodes = jc.discover_batches(model, saes, [prompts, short], node_threshold=0.05, edge_threshold=None)
    assert nodes.meta["length"] == [3, 4]


def test_thresholds_of_instances(arguments, circuit):
    """Edges into those instances of a kept node whose own effect is above the threshold, from all instances of kept nodes."""
    nodes = jc.node_effects(*arguments)
    effects = jc.edge_effects(*arguments, nodes, threshold=CUTS["node_threshold"])
    got = jc.discover(*arguments, node_threshold=CUTS["node_threshold"], edge_threshold=1e-3, thresholds="instances")
    kept, want = set(got.nodes["node"]), {}
    saes = arguments[1]
    name = lambda site, unit: f"{site}/{'error' if unit == saes[site].d_sae else unit}"
    for (source, target), (targets, sources, values) in effects.coo.items():
        for down, up, value in zip(targets[:, 2], sources[:, 2], values, strict=True):
            ends = name(source, up), name(target, down)
            if kept >= set(ends):
                want[ends] = want.get(ends, 0) + value / 3
    want = {ends: value for ends, value in want.items() if abs(value) > 1e-3}
    inside = {(e.source, e.target): e.weight for e in got.edge_rows() if e.target != "metric"}
    assert len(want) > 20
    assert inside == pytest.approx(want)
    everything = jc.discover(*arguments, node_threshold=CUTS["node_threshold"], edge_threshold=1e-3)
    assert list(everything.nodes["node"]) == list(got.nodes["node"])
    assert len(everything.edges) > len(got.edges)


@pytest.mark.parametrize("edges", ["clean", "integrated"])
def test_edges_carry_a_certificate(arguments, edges, monkeypatch):
    found = jc.discover(*arguments, **CUTS, edges=edges)
    certificate = found.meta["certificate"]
    assert 0 < certificate["error"] < 1e-12
    assert certificate["probes"] == 3  # into attention, MLPs and the residual stream
    assert json.loads(json.dumps(certificate))["versions"]["jax"] == jax.__version__
    from jaxcirc.attribution import _way_back

    right = _way_back.contract_batch
    monkeypatch.setattr(_way_back, "contract_batch", lambda *given: right(*given) * (1 + 1e-7))
    with pytest.raises(ValueError, match=r"The result is wrong: relative error 1\.0e-07"):
        jc.discover(*arguments, **CUTS, edges=edges)


def test_models_and_dictionaries_are_known_by_what_is_in_them(arguments, circuit):
    """Where they lie and how they are called does not matter, nor in which precision they were loaded; other numbers do."""
    model, saes, *rest = arguments
    site = next(iter(saes))
    moved = {s: dataclasses.replace(sae, origin="/elsewhere") for s, sae in saes.items()}
    renamed = dataclasses.replace(model, name="a copy")
    want = jc.evaluate(circuit, *arguments).faithfulness
    assert jc.evaluate(circuit, renamed, moved, *rest).faithfulness == pytest.approx(want)
    single = as_dtype((model, saes), jnp.float32)
    assert fingerprint(single[0]) == fingerprint(model)
    assert fingerprint(single[1][site]) == fingerprint(saes[site])
    retrained = {**saes, site: dataclasses.replace(saes[site], W_dec=saes[site].W_dec * 1.05)}
    with pytest.raises(ValueError, match=f"found with other dictionaries: at `{site}` .* with other weights"):
        jc.evaluate(circuit, model, retrained, *rest)
    assert len(circuit.merge(circuit.annotate(model="a copy")).nodes) == len(circuit.nodes)
    other = circuit.annotate(model="b", fingerprints={"model": "0", "dictionaries": {}})
    with pytest.raises(ValueError, match="The circuits differ in their model: random and b"):
        circuit.merge(other)


def test_circuits_whose_fingerprints_are_of_arrays_alone(arguments, circuit):
    """As they once were recorded: they are known again by these, and other settings are told apart where they were recorded."""
    model, saes, *rest = arguments
    site, recorded = next(iter(saes)), circuit.meta["fingerprints"]
    arrays = lambda text: text.partition("-")[0]
    old = circuit.annotate(
        fingerprints={
            "model": arrays(recorded["model"]),
            "dictionaries": {site: arrays(text) for site, text in recorded["dictionaries"].items()},
        }
    )
    assert jc.evaluate(old, *arguments).faithfulness == jc.evaluate(circuit, *arguments).faithfulness
    again = {**saes, site: dataclasses.replace(saes[site], centred=False)}
    with pytest.raises(ValueError, match=f"at `{site}` .* with the same weights and other settings"):
        jc.evaluate(circuit, model, again, *rest)
    with pytest.raises(ValueError, match="the model is random, with the same weights and other settings"):
        jc.evaluate(circuit, dataclasses.replace(model, causal=False), saes, *rest)
    retrained = dataclasses.replace(model, W_E=model.W_E * 1.05)
    for known in (old, circuit):
        with pytest.raises(ValueError, match="the model is random, with other weights"):
            jc.evaluate(known, retrained, saes, *rest)


def test_nodes_alone(arguments, circuit):
    alone = jc.discover(*arguments, node_threshold=CUTS["node_threshold"], edge_threshold=None)
    assert alone.nodes.equals(circuit.nodes)
    assert len(alone.edges) == 0
    assert alone.meta["certificate"] is None
    assert jc.evaluate(alone, *arguments).faithfulness == jc.evaluate(circuit, *arguments).faithfulness


def test_padded_prompts(arguments):
    """Prompts of unequal length give the mean of what each gives alone."""
    model, saes, clean, corrupt, _ = arguments
    cuts = {"node_threshold": 0.0, "edge_threshold": None, "method": jc.Gradient()}
    lengths = np.array([4, 3])
    metric = jc.LogitDiff(jnp.arange(2), jnp.arange(2) + 2, position=jnp.asarray(lengths - 1))
    mask = jnp.asarray(np.arange(4) < lengths[:, None])
    together = jc.discover(model, saes, clean[:2], corrupt[:2], metric, **cuts, mask=mask)
    sums = {}
    for i, length in enumerate(lengths):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], metric)
        alone = jc.discover(model, saes, clean[i : i + 1, :length], corrupt[i : i + 1, :length], one, **cuts)
        for node in alone.node_rows():
            sums[node.node] = sums.get(node.node, 0) + node.effect / 2
    assert len(sums) > 20
    assert {node.node: node.effect for node in together.node_rows()} == pytest.approx(sums)


def test_the_completeness_of_the_nodes_is_reported(arguments, circuit):
    shares = circuit.meta["completeness"]
    assert set(shares) == {str(site) for site in arguments[1] if site.kind in (Kind.RESID_PRE, Kind.RESID_POST)}
    assert all(abs(share - 1) < 0.05 for share in shares.values())


def test_what_was_done_is_recorded(circuit):
    meta = json.loads(json.dumps(circuit.meta.as_dict()))
    assert meta["method"] == {"name": "IntegratedGradients", "steps": 10, "rule": "midpoint", "start": "clean"}
    assert meta["node_threshold"] == CUTS["node_threshold"]
    assert meta["prompts"] == 3
    assert meta["versions"]["jax"] == jax.__version__
    assert meta["clean_metric"] != 0


def test_a_metric_that_is_a_function_has_its_name(arguments):
    def first_of_all(logits):
        return logits[-1, 0]

    found = jc.discover(*arguments[:4], first_of_all, node_threshold=1e-3, edge_threshold=None, method=jc.Gradient())
    assert found.meta.metric == "first_of_all"


def test_progress_is_told(arguments):
    told = []
    jc.discover(*arguments, **CUTS, batch_size=2, progress=lambda done, of, stage: told.append((done, of, stage)))
    for stage in ("nodes", "edges"):
        steps = [(done, of) for done, of, name in told if name == stage]
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1] > 0


def test_save_and_load(circuit, by_position, tmp_path):
    for which in (circuit, by_position, circuit):  # the third replaces what the first wrote
        which.save(tmp_path / "saved")
        loaded = jc.Circuit.load(tmp_path / "saved")
        assert loaded.nodes.equals(which.nodes)
        assert loaded.edges.equals(which.edges)
        assert loaded.meta == which.meta
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_tables_are_ready_for_arrow(circuit):
    import pyarrow as pa

    assert pa.table(circuit.nodes).num_rows == len(circuit.nodes)
    assert pa.table(circuit.edges).column_names == ["source", "target", "weight"]


def test_a_damaged_circuit_is_told(circuit, tmp_path):
    with pytest.raises(ValueError, match=r"is not a saved circuit: it holds no circuit\.json"):
        jc.Circuit.load(tmp_path)
    circuit.save(tmp_path / "saved")
    table = tmp_path / "saved" / "edges.parquet"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        jc.Circuit.load(tmp_path / "saved")
    (tmp_path / "saved" / "circuit.json").write_text('{"format": "jaxcirc circuit", "version": 99}')
    circuit.edges.to_parquet(table)
    with pytest.raises(ValueError, match="newer version"):
        jc.Circuit.load(tmp_path / "saved")


def test_files_that_do_not_belong_together(circuit, tmp_path):
    folder = tmp_path / "saved"
    nodes, edges = folder / "nodes.parquet", folder / "edges.parquet"
    kept = circuit.nodes["node"] != circuit.edges["source"][0]
    other = circuit.nodes.assign(site="blocks.0.nowhere")
    broken = {
        r"circuit\.json holds no object": lambda: (folder / "circuit.json").write_text("[]"),
        r"nodes\.parquet has no column 'site', 'effect'": lambda: circuit.nodes.drop(
            columns=["site", "effect"]
        ).to_parquet(nodes),
        r"edges\.parquet has no column 'source', 'target', 'weight'": lambda: circuit.nodes.to_parquet(edges),
        r"has an edge .*, and nodes\.parquet no node blocks": lambda: circuit.nodes[kept].to_parquet(nodes),
        r"nodes at 'blocks\.0\.nowhere', which is no site": lambda: other.to_parquet(nodes),
    }
    for message, damage in broken.items():
        circuit.save(folder)
        damage()
        with pytest.raises(ValueError, match=f"The circuit in .* is damaged: .*{message}.*Compute or copy it again"):
            jc.Circuit.load(folder)


def test_a_folder_that_is_not_a_circuit_is_left_alone(circuit, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not a circuit .it holds no circuit\.json.. Choose another path"):
        circuit.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_nothing(circuit, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    circuit.save(tmp_path / "saved")
    monkeypatch.setattr("pandas.DataFrame.to_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        circuit.annotate(note="second").save(tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert "note" not in jc.Circuit.load(tmp_path / "saved").meta


def test_the_page_shows_the_circuit(by_position, tmp_path):
    by_position.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A &#60;circuit&#62;" in page
    held = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert set(held["nodes"]["name"]) == {*by_position.nodes["node"], "metric"}
    weights = sorted(by_position.edges["weight"].abs(), reverse=True)
    assert np.abs(held["edges"]["weight"]).tolist() == weights
    assert len(weights) > 150  # none is left out
    assert held["tokens"] == ["a<b", "&", "c", "d"]


def test_the_picture_has_the_strongest_edges_and_a_place_for_every_node(by_position, circuit, tmp_path):
    for which in (by_position, circuit):
        figure = which.to_figure(tmp_path / "picture.svg", most_edges=20)
        axes = figure.axes[0]
        (lines,) = [each for each in axes.collections if type(each).__name__ == "LineCollection"]
        assert len(lines.get_paths()) == 20
        widths, weights = lines.get_linewidths(), which.edges["weight"].abs().nlargest(20).to_numpy()
        np.testing.assert_allclose(widths[::-1], (0.5 + 3 * weights / weights[0]) * widths[-1] / 3.5, rtol=1e-6)
        marks = [each for each in axes.collections if type(each).__name__ == "PathCollection"]
        centres = np.concatenate([each.get_offsets() for each in marks])
        assert len(centres) > 20
        assert len(np.unique(centres, axis=0)) == len(centres)  # no two on one place
        assert "20 strongest of" in figure.get_suptitle()
        assert "red positive, blue negative" in figure.get_suptitle()
        once = (tmp_path / "picture.svg").read_bytes()
        which.to_figure(tmp_path / "picture.svg", most_edges=20)
        assert (tmp_path / "picture.svg").read_bytes() == once
        assert "a<b" not in once.decode()
    assert by_position.to_figure(most_edges=0).axes


def test_an_edge_of_no_node_is_not_drawn(circuit, tmp_path):
    broken = dataclasses.replace(circuit, edges=circuit.edges.assign(source="x"))
    for draw in (broken.to_html, broken.to_figure):
        with pytest.raises(ValueError, match="an edge ends at 'x', which is no node"):
            draw(tmp_path / "drawn.svg")
    assert not list(tmp_path.iterdir())


def test_graphml_is_read_back(circuit, by_position, tmp_path):
    networkx = pytest.importorskip("networkx")
    for which in (circuit, by_position):
        which.to_graphml(tmp_path / "circuit.graphml")
        graph = networkx.read_graphml(tmp_path / "circuit.graphml")
        assert graph.graph["metric"] == "LogitDiff"
        rows = {name: facts for name, facts in graph.nodes(data=True) if name != "metric"}
        missing = {"pos": None} if which is circuit else {}
        assert {name: {**missing, **facts} for name, facts in rows.items()} == {
            row.node: row._asdict() for row in which.node_rows()
        }
        weights = {(row.source, row.target): row.weight for row in which.edge_rows()}
        assert {ends: graph.edges[ends]["weight"] for ends in graph.edges} == weights


def layers_of_nodes(layers, width, weight):
    """A circuit of layers of nodes, each with an edge into every one of the next, and none to the metric."""
    name = lambda layer, i: f"blocks.{layer}.hook_resid_post/{i}"
    nodes = [
        (name(layer, i), name(layer, i)[:-2], i, "latent", None, 1.0) for layer in range(layers) for i in range(width)
    ]
    pairs = [
        (name(layer, i), name(layer + 1, j)) for layer in range(layers - 1) for i in range(width) for j in range(width)
    ]
    columns = ["node", "site", "unit", "kind", "pos", "effect"]
    edges = pd.DataFrame([(*pair, weight(*pair)) for pair in pairs], columns=["source", "target", "weight"])
    return jc.Circuit(pd.DataFrame(nodes, columns=columns), edges, {}), name


def test_paths_are_found_without_walking_all_others():
    rng = np.random.default_rng(0)
    wide, name = layers_of_nodes(12, 9, lambda *ends: 1e-9 if "blocks.11." in ends[1] else float(rng.normal()))
    assert wide.paths(name(0, 0)) == []
    assert wide.paths(name(11, 0), name(0, 0)) == []
    assert wide.paths(name(0, 0), name(0, 0)) == []
    assert wide.paths("metric") == []
    found = wide.paths(name(0, 0), name(11, 3), most=3)  # of nine to the tenth, all as weak as their last edge
    assert [weight for _, weight in found] == [1e-9] * 3
    assert len({tuple(path) for path, _ in found}) == 3
    assert all(len(path) == 12 for path, _ in found)


def test_graphviz(circuit, monkeypatch):
    pytest.importorskip("graphviz")
    source = circuit.to_graphviz(most_edges=30).source
    assert source.count("->") == 30
    assert "ε" in source
    monkeypatch.setitem(__import__("sys").modules, "graphviz", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxcirc\[graphviz\]'"):
        circuit.to_graphviz()


class Letters:
    """A tokenizer of letters."""

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids)


def test_latents_are_annotated_with_what_they_fire_on(arguments, circuit):
    model, saes, clean, corrupt, _ = arguments
    notes = annotate_latents(circuit, model, saes, [clean, corrupt], Letters())
    assert len(notes) > 5
    node = next(node for node in circuit.node_rows() if node.node in notes)
    site = Site.parse(node.site)
    tokens = np.concatenate([clean, corrupt])
    acts = np.stack([oracle.node_values(model, saes, jnp.asarray(row))[site.acts][:, node.unit] for row in tokens])
    means = {Letters().decode([t]): acts[tokens == t].mean() for t in np.unique(tokens)}
    assert notes[node.node].removeprefix("on ").split(", ")[0] == max(means, key=means.__getitem__)


def test_latents_are_described(arguments, by_position):
    model, saes, clean, corrupt, _ = arguments
    found = describe_latents(by_position, model, saes, [clean, corrupt], Letters(), examples=2, outputs=3)
    latents = by_position.nodes[by_position.nodes["kind"] == "latent"]
    assert set(found) == {name.partition("@")[0] for name in latents["node"]}
    name = next(name for name, each in found.items() if each["examples"] and each["acts"] != [0] * 4)
    site, unit = Site.parse(name.partition("/")[0]), int(name.partition("/")[2])
    tokens = np.concatenate([clean, corrupt])
    acts = np.stack([oracle.node_values(model, saes, jnp.asarray(row))[site.acts][:, unit] for row in tokens])
    np.testing.assert_allclose(found[name]["acts"], acts[0], rtol=1e-3, atol=1e-9)
    best = acts.max(1).argmax()
    np.testing.assert_allclose(found[name]["examples"][0]["acts"], acts[best], rtol=1e-3, atol=1e-9)
    assert found[name]["examples"][0]["tokens"] == [chr(97 + t) for t in tokens[best]]
    name = next(name for name in found if "mlp_out" in name or "resid_post" in name)
    row = saes[Site.parse(name.partition("/")[0])].W_dec[int(name.partition("/")[2])]
    ids, logits = jc.decode(model, row[None]).top(3)
    assert [word for word, _ in found[name]["promotes"]] == [chr(97 + t) for t in np.asarray(ids)[0]]
    np.testing.assert_allclose([x for _, x in found[name]["promotes"]], logits[0], rtol=1e-3)
    _, logits = jc.decode(model, row[None]).bottom(3)
    np.testing.assert_allclose([x for _, x in found[name]["suppresses"]], logits[0], rtol=1e-3)
    json.dumps(by_position.annotate(latents=found).meta.as_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="describe_latents: outputs is how many output tokens to list, at least 1"):
        describe_latents(by_position, model, saes, [clean], Letters(), outputs=0)


def test_latents_are_described_on_batches_of_unlike_length(arguments, by_position):
    model, saes, clean, corrupt, _ = arguments
    alone = describe_latents(by_position, model, saes, [clean[:, :3]], Letters(), examples=9)
    both = describe_latents(by_position, model, saes, [clean[:, :3], corrupt], Letters(), examples=9)
    assert any(each["examples"] for each in alone.values())
    for name, each in alone.items():
        assert both[name]["acts"] == each["acts"]
        assert all(example in both[name]["examples"] for example in each["examples"])
    notes = annotate_latents(by_position, model, saes, [clean[:, :3], corrupt], Letters())
    assert notes.keys() >= annotate_latents(by_position, model, saes, [clean[:, :3]], Letters()).keys() != set()
    node = next(row for row in by_position.node_rows() if row.kind == "latent")
    without = {site: sae for site, sae in saes.items() if str(site) != node.site}
    with pytest.raises(ValueError, match=rf"the circuit has latents up to .* at `{node.site}`, and no dictionary"):
        annotate_latents(by_position, model, without, [clean], Letters())


@pytest.mark.usefixtures("untyped")
def test_latents_are_described_on_a_list_of_batches(arguments, by_position):
    model, saes, clean, *_ = arguments
    for verb in (annotate_latents, describe_latents):
        with pytest.raises(
            TypeError, match=rf"{verb.__name__}: token_batches: expected a list .*, got one. Write \[tokens\]"
        ):
            verb(by_position, model, saes, clean, Letters())
        with pytest.raises(ValueError, match=f"{verb.__name__}: token_batches: there is no prompt"):
            verb(by_position, model, saes, [], Letters())
        with pytest.raises(ValueError, match="Token id 99 at"):
            verb(by_position, model, saes, [clean.at[0, 0].set(99)], Letters())


@pytest.mark.parametrize(
    ("notes", "error", "message"),
    [
        ({"tokens": ["The"]}, ValueError, "1 were given, and the circuit has prompts of 4 tokens"),
        ({"tokens": list("abcde")}, ValueError, "5 were given, and the circuit has prompts of 4 tokens"),
        ({"tokens": "abcd"}, TypeError, "expected a list of the prompt's tokens, as text, got one"),
        ({"tokens": [1, 2, 3, 4]}, TypeError, "a token: expected text, as tokenizer.decode gives it, got 1"),
        ({"annotations": ["x"]}, TypeError, "annotations: expected a mapping from nodes to texts"),
        ({"seed": np.float32(1)}, TypeError, "seed is to be saved as JSON: .*float32"),
        ({"seed": float("nan")}, ValueError, "seed is to be saved as JSON: .*Give plain numbers that are finite"),
    ],
    ids=str,
)
def test_what_cannot_be_noted(by_position, notes, error, message):
    with pytest.raises(error, match=f"Circuit.annotate: .*{message}"):
        by_position.annotate(**notes)


def test_a_circuit_is_itself_alone(circuit, by_position):
    assert circuit == circuit != by_position
    assert len({circuit, by_position, circuit}) == 2


BAD = {
    "nothing kept": (
        lambda a: {"node_threshold": 1e6},
        "No node has an effect above node_threshold=1e.06; the largest is",
    ),
    "clean is corrupt": (lambda a: {"corrupt": a[2]}, "The corrupt prompts are equal to the clean ones"),
    "aggregate": (lambda a: {"aggregate": "mean"}, "aggregate must be 'sum' or 'none'"),
    "thresholds": (lambda a: {"thresholds": "all"}, "thresholds must be 'averages' or 'instances', got 'all'"),
    "no effect": (lambda a: {"metric": lambda logits: logits[0, 0]}, "so there is no effect to explain"),
    "batch size": (
        lambda a: {"batch_size": 0},
        "discover: batch_size is how many prompts are run at once, at least 1; got 0",
    ),
    "metric": (
        lambda a: {"metric": lambda logits: jnp.log(-jnp.abs(logits[-1, 0]))},
        "the metric is not finite on prompt 0",
    ),
    "positions of padded prompts": (
        lambda a: {"aggregate": "none", "mask": jnp.ones((3, 4), bool).at[0, 1].set(False)},
        "padded prompts do not align",
    ),
}


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("what", list(BAD))
def test_bad_input(arguments, what):
    change, message = BAD[what]
    names = ("model", "saes", "clean", "corrupt", "metric")
    with pytest.raises(ValueError, match=message):
        jc.discover(**dict(zip(names, arguments, strict=True)) | CUTS | change(arguments))


@pytest.mark.usefixtures("untyped")
def test_a_method_of_another_kind(arguments):
    with pytest.raises(TypeError, match=r"expected one such as jc.IntegratedGradients\(10\), .* got a str"):
        jc.discover(*arguments, **CUTS, method="gradient")


def test_one_trace_for_a_shape(arguments):
    """New prompts, dictionaries' values and metrics of the same shapes run what is compiled."""
    from jaxcirc.attribution._effects import _products
    from jaxcirc.attribution._states import _encoded
    from jaxcirc.runs._gradients import _forward
    from jaxcirc.runs._resume import _through

    verbs = (_through, _encoded, _forward, _products)
    model, saes, clean, corrupt, metric = arguments
    jc.node_effects(*arguments)
    before = [verb._cache_size() for verb in verbs]
    assert all(before)
    other = jax.tree.map(lambda x: x * 1.01 if jnp.issubdtype(x.dtype, jnp.floating) else x, saes)
    nodes = jc.node_effects(model, other, corrupt, clean, jax.tree.map(jnp.flip, metric))
    assert np.abs(nodes.total).max() > 1e-3
    assert [verb._cache_size() for verb in verbs] == before


def test_integrated_edges_of_a_circuit(arguments):
    path = jc.IntegratedGradients(2)
    found = jc.discover(
        *arguments, node_threshold=0.0, edge_threshold=1e-9, method=path, edges="integrated", batch_size=2
    )
    out = found.edges.groupby("source")["weight"].sum()
    effect = found.nodes.set_index("node")["effect"]
    large = effect[effect.abs() > 1e-2].index
    assert len(large) > 20
    np.testing.assert_allclose(out[large], effect[large], rtol=1e-5)
    assert found.meta["edges_at"] == "integrated"
    with pytest.raises(ValueError, match="takes the path of the nodes' method, and Gradient has none"):
        jc.discover(*arguments, **CUTS, method=jc.Gradient(), edges="integrated")
    with pytest.raises(ValueError, match="edges must be 'clean' or 'integrated', got 'both'"):
        jc.discover(*arguments, **CUTS, edges="both")


def test_an_attribution_graph(circuit, by_position, tmp_path):
    by_position.to_attribution_graph(tmp_path / "agreement.json")
    graph = json.loads((tmp_path / "agreement.json").read_text())
    assert graph["metadata"]["slug"] == "agreement"
    assert graph["metadata"]["prompt_tokens"] == by_position.meta["tokens"]
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) == len(by_position.nodes) + 1
    assert len({node["jsNodeId"] for node in graph["nodes"]}) == len(nodes)
    links = {(link["source"], link["target"]): link["weight"] for link in graph["links"]}
    assert links == {(row.source, row.target): row.weight for row in by_position.edge_rows()}
    assert {end for link in links for end in link} <= nodes.keys()
    assert {node["feature_type"] for node in nodes.values()} == {
        "logit",
        "cross layer transcoder",
        "mlp reconstruction error",
    }
    for row in by_position.node_rows():
        node = nodes[row.node]
        assert (node["ctx_idx"], node["reverse_ctx_idx"]) == (row.pos, 3 - row.pos)
        assert node["layer"] == str(Site.parse(row.site).layer)
    influence = [nodes[row.node]["influence"] for row in by_position.node_rows()]
    assert (np.diff(influence) > 0).all()
    assert influence[-1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"they were summed\. Find it with aggregate='none'"):
        circuit.to_attribution_graph(tmp_path / "other.json")
    with pytest.raises(ValueError, match="An attribution graph shows tokens"):
        jc.Circuit(by_position.nodes, by_position.edges, {}).to_attribution_graph(tmp_path / "other.json")
    unknown = jc.Circuit(by_position.nodes, by_position.edges, {"tokens": ["a"]})  # as of an old file
    with pytest.raises(ValueError, match="1 were given, and the circuit has nodes at position 3"):
        unknown.to_attribution_graph(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()
