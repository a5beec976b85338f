"""Attribution graphs on disk, and as JSON: ours, circuit-tracer's and Neuronpedia's."""

import json

import jax
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc.attribution_graphs._table import LOGIT

from .graphs import REPLACEMENTS, whole
from .helpers import make_model, tokens_for


@pytest.fixture(scope="module")
def model():
    return make_model(jax.random.key(0))


@pytest.fixture(scope="module", params=["saes", "cross-layer", "neurons"])
def graph(request, model):
    return whole(model, REPLACEMENTS[request.param](model), tokens_for(model, 5)).prune(
        node_threshold=0.9, edge_threshold=0.9
    )


TEXTS = ["<s>", " é", " the", "\n", " cat"]


def same(got, want):
    pd.testing.assert_frame_equal(got.nodes, want.nodes)
    assert (got.adjacency == want.adjacency).all()
    assert got.adjacency.dtype == want.adjacency.dtype
    np.testing.assert_array_equal(got.values, want.values)


def test_saved_and_loaded(graph, tmp_path):
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    again = jc.AttributionGraph.load(path)
    same(again, graph)
    assert again.meta == graph.meta
    assert (again.node_threshold, again.edge_threshold) == (0.9, 0.9)
    assert again.replacement_score == graph.replacement_score
    same(again.prune(node_threshold=1.0, edge_threshold=1.0), graph.prune(node_threshold=1.0, edge_threshold=1.0))
    assert [file.name for file in tmp_path.iterdir()] == ["graph.safetensors"]


def test_texts_are_kept_with_a_graph(model, tmp_path):
    """And those of outputs by which they are, so that a pruned graph has its own."""
    graph = jc.attribution_graph(model, None, tokens_for(model, 5), targets=[4, 7], max_nodes=40)
    units = graph.table.unit[graph.table.kind == LOGIT].tolist()
    assert sorted(units) == [4, 7]
    known = graph.annotate(TEXTS, outputs=[f"<{unit}>" for unit in units])
    known.save(tmp_path / "g.safetensors")
    found = jc.AttributionGraph.load(tmp_path / "g.safetensors")
    described = found.described()
    assert described.tokens == TEXTS
    assert described.facts["metric"] == known.described().facts["metric"]
    assert f"<{units[0]}>" in described.facts["metric"]
    less = found.prune(node_threshold=0.1, edge_threshold=0.5)
    assert set(less.described().facts["metric"].split()) <= set(described.facts["metric"].split()) | {"and"}
    with pytest.raises(ValueError, match="annotate: tokens are the prompt's 5 tokens"):
        graph.annotate(TEXTS[:2])


def test_another_file_is_no_graph(graph, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "graph.safetensors"
    save_file({"x": np.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"holds no attribution graph that AttributionGraph\.save wrote"):
        jc.AttributionGraph.load(path)
    save_file({"x": np.zeros(2)}, path, {"format": "jaxcirc attribution graph", "version": "7"})
    with pytest.raises(ValueError, match="of version 7, and version 1 is known here"):
        jc.AttributionGraph.load(path)
    graph.save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a whole safetensors file"):
        jc.AttributionGraph.load(path)


def test_a_graph_knows_its_model(graph, model):
    graph.check_model(model)
    with pytest.raises(
        ValueError, match=r"This graph is of random, and not of the random that was given, with other weights\."
    ):
        graph.check_model(make_model(jax.random.key(1)))


def test_json(graph, tmp_path):
    path = tmp_path / "a graph.json"
    graph.to_json(path, tokens=TEXTS)
    held = json.loads(path.read_text(encoding="utf-8"))
    assert held["metadata"]["schema_version"] == 1
    assert held["metadata"]["slug"] == "a-graph"
    assert held["metadata"]["prompt"] == "".join(TEXTS)
    assert held["metadata"]["pruning_settings"] == {"node_threshold": 0.9, "edge_threshold": 0.9}
    nodes = {node["node_id"]: node for node in held["nodes"]}
    assert len(nodes) == len(held["nodes"]) == len(graph.nodes)
    # A latent has one at all positions, which no other node has.
    assert len({(node["jsNodeId"], node["ctx_idx"]) for node in held["nodes"]}) == len(nodes)
    assert {link[end] for link in held["links"] for end in ("source", "target")} <= nodes.keys()
    assert len(held["links"]) == np.count_nonzero(graph.adjacency)
    names = list(nodes)
    strongest = np.unravel_index(np.abs(graph.adjacency).argmax(), graph.adjacency.shape)
    (link,) = (x for x in held["links"] if (x["target"], x["source"]) == (names[strongest[0]], names[strongest[1]]))
    assert link["weight"] == graph.adjacency[strongest]
    order = graph.nodes.influence.to_numpy().argsort()[::-1]
    shares = [held["nodes"][i]["influence"] for i in order if held["nodes"][i]["feature_type"] != "logit"]
    assert (np.diff(shares) >= 0).all()
    for row, node in zip(graph.nodes.itertuples(), held["nodes"], strict=True):
        if row.kind == "token":
            assert node["node_id"] == f"E_{row.unit}_{row.pos}"
            assert (node["feature"], node["clerp"]) == (row.pos, f'Emb: "{TEXTS[row.pos]}"')
        if row.kind == "logit":
            assert node["node_id"] == f"3_{row.unit}_4"
            assert node["clerp"] == f'Output "#{row.unit}" (p={row.probability:.3f})'
            assert node["token_prob"] == row.probability
        if row.kind == "latent" and row.site.endswith(("hook_mlp_out", "hook_post")):
            assert node["node_id"] == f"{row.layer}_{row.unit}_{row.pos}"
            assert node["feature"] == (row.layer + row.unit) * (row.layer + row.unit + 1) // 2 + row.unit
            assert node["activation"] == row.activation


def test_json_and_back(graph, tmp_path):
    graph.to_json(tmp_path / "graph.json", tokens=TEXTS)
    again = jc.AttributionGraph.from_json(tmp_path / "graph.json")
    columns = ["kind", "site", "layer", "pos", "unit", "activation", "probability"]
    pd.testing.assert_frame_equal(again.nodes[columns], graph.nodes[columns], check_dtype=False, rtol=1e-15)
    np.testing.assert_array_equal(again.adjacency, graph.adjacency)
    assert (again.node_threshold, again.edge_threshold) == (0.9, 0.9)
    assert again.meta["tokens"] == graph.meta["tokens"]
    again.to_json(tmp_path / "again.json")
    first, second = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("graph.json", "again.json"))
    assert first["links"] == second["links"]
    without = lambda held: [{**node, "influence": None} for node in held["nodes"]]
    assert without(first) == without(second)
    again.check_model(make_model(jax.random.key(3)))  # a graph from JSON does not say


def test_all_of_a_graph_in_json_has_its_influence(model, tmp_path):
    graph = whole(model, REPLACEMENTS["transcoders"](model), tokens_for(model, 5))
    graph.to_json(tmp_path / "graph.json", tokens=TEXTS)
    again = jc.AttributionGraph.from_json(tmp_path / "graph.json")
    np.testing.assert_allclose(
        again.nodes.influence, graph.nodes.influence, rtol=1e-5 if graph.rows.dtype == np.float32 else 1e-12
    )
    assert again.completeness_score == pytest.approx(graph.completeness_score)


def test_texts_of_a_tokenizer(graph, tmp_path):
    class Tokenizer:
        def decode(self, ids):
            return f"<{ids[0]}>"

    graph.to_json(tmp_path / "graph.json", tokens=Tokenizer())
    held = json.loads((tmp_path / "graph.json").read_text())
    assert held["metadata"]["prompt_tokens"] == [f"<{i}>" for i in graph.meta["tokens"]]
    (best,) = (node for node in held["nodes"] if node["is_target_logit"])
    assert best["clerp"].startswith(f'Output "<{best["feature"]}>" (p=0.')
    with pytest.raises(ValueError, match="tokens are the prompt's 5 tokens as text, or a tokenizer; got 2"):
        graph.to_json(tmp_path / "other.json", tokens=["a", "b"])
    with pytest.raises(
        ValueError, match=r"tokens are the prompt's 5 tokens as text, or a tokenizer; got 0\. Give them"
    ):
        graph.to_json(tmp_path / "other.json")
    with pytest.raises(ValueError, match="outputs are the texts of the"):
        graph.to_json(
            tmp_path / "other.json", tokens=TEXTS, outputs=["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"]
        )
    assert not (tmp_path / "other.json").exists()


def node(name, kind, layer, position, **more):
    return {
        "node_id": name,
        "feature": more.pop("feature", None),
        "layer": layer,
        "ctx_idx": position,
        "feature_type": kind,
        "jsNodeId": f"{name}-0",
        "clerp": "",
        **more,
    }


def theirs() -> dict:
    """A graph as circuit-tracer writes it, of a model of two layers: the error of layer 1 at position 1 has the id of a latent."""
    latent, error = "cross layer transcoder", "mlp reconstruction error"
    return {
        "metadata": {
            "slug": "capital",
            "scan": "gemma-2-2b",
            "transcoder_list": [],
            "prompt_tokens": ["<bos>", " Paris"],
            "prompt": "<bos> Paris",
            "node_threshold": 0.8,
            "schema_version": 1,
        },
        "qParams": {"pinnedIds": [], "supernodes": []},
        "nodes": [
            node("0_1_1", latent, "0", 1, feature=2, activation=3.5, influence=0.4),
            node("1_300_1", latent, "1", 1, feature=45751, activation=1.5, influence=0.7),
            node("0_1_1", error, "1", 1, feature=-1, influence=0.9),
            node("E_2_0", "embedding", "E", 0, feature=0),
            node("E_77_1", "embedding", "E", 1, feature=1),
            node(
                "3_99_1",
                "logit",
                "3",
                1,
                feature=99,
                token_prob=0.6,
                is_target_logit=True,
                clerp='Output " France" (p=0.600)',
            ),
        ],
        "links": [
            {"source": "E_77_1", "target": "0_1_1", "weight": 2.0},
            {"source": "0_1_1", "target": "1_300_1", "weight": 0.5},
            {"source": "1_300_1", "target": "3_99_1", "weight": 1.0},
            {"source": "0_1_1", "target": "3_99_1", "weight": 0.25},
            {"source": "0_1_1", "target": "3_99_1", "weight": -0.125},
        ],
    }


def test_a_file_of_circuit_tracer(tmp_path):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(theirs()), encoding="utf-8")
    with pytest.warns(
        UserWarning, match="1 ids are each those of a latent and of an error, .* 1 links from such an id are taken"
    ):
        graph = jc.AttributionGraph.from_json(path)
    assert graph.nodes.kind.tolist() == ["latent", "latent", "error", "token", "token", "logit"]
    assert graph.nodes.layer.tolist() == [0, 1, 1, -1, -1, 2]
    assert graph.nodes.unit.tolist() == [1, 300, -1, 2, 77, 99]
    assert graph.nodes.pos.tolist() == [1, 1, 1, 0, 1, 1]
    want = np.zeros((6, 6))
    want[0, 4], want[1, 0], want[5, 1], want[5, 0], want[5, 2] = 2.0, 0.5, 1.0, 0.25, -0.125
    assert (graph.adjacency == want).all()
    assert graph.meta["tokens"] == [2, 77]
    graph.to_json(tmp_path / "ours.json")
    held = json.loads((tmp_path / "ours.json").read_text(encoding="utf-8"))
    assert len({node["node_id"] for node in held["nodes"]}) == 6
    assert held["metadata"]["scan"] == "gemma-2-2b"
    assert held["nodes"][-1]["clerp"] == 'Output " France" (p=0.600)'


def test_what_query_and_key_tracing_found_is_kept(tmp_path):
    held, traced = theirs(), {"pair_wise_contributors": [["0_1_1", "1_300_1", 0.5]]}
    held["nodes"][2]["node_id"] = "err_1_1"
    held["nodes"][1]["qk_tracing_results"] = traced
    held["qk_only_nodes"] = {"5_5_5": {}}
    (tmp_path / "theirs.json").write_text(json.dumps(held), encoding="utf-8")
    jc.AttributionGraph.from_json(tmp_path / "theirs.json").to_json(tmp_path / "ours.json")
    ours = json.loads((tmp_path / "ours.json").read_text(encoding="utf-8"))
    assert [node.get("qk_tracing_results") for node in ours["nodes"]] == [None, traced, None, None, None, None]
    assert ours["qk_only_nodes"] == {"5_5_5": {}}


@pytest.mark.parametrize("kind", ["saes", "neurons"])
def test_scores_by_pairs_of_nodes_go_to_a_file_and_back(kind, model, tmp_path):
    dictionaries, tokens = REPLACEMENTS[kind](model), tokens_for(model, 5)
    graph = whole(model, dictionaries, tokens).prune(node_threshold=0.7, edge_threshold=0.9)
    first, second = (int(i) for i in graph.nodes.index[graph.nodes.kind == "latent"][:2])
    score = jc.qk_attribution(model, dictionaries, tokens, 1, 0, 4, 2, pairs=30)
    other = jc.qk_attribution(model, dictionaries, tokens, 0, 1, 3, 3, pairs=4)
    graph.to_json(tmp_path / "graph.json", tokens=TEXTS, qk={first: score, np.int64(second): other})
    held = json.loads((tmp_path / "graph.json").read_text(encoding="utf-8"))
    ids = [node["node_id"] for node in held["nodes"]]
    assert [i for i, node in enumerate(held["nodes"]) if "qk_tracing_results" in node] == [first, second]
    found = held["nodes"][first]["qk_tracing_results"]
    assert found.keys() == {"pair_wise_contributors", "top_q_marginal_contributors", "top_k_marginal_contributors"}
    assert [value for *_, value in found["pair_wise_contributors"]] == score.values.tolist()
    # Every id is that of a node of the graph or one beside it, and of the same node.
    only = held["qk_only_nodes"]
    assert only
    assert not only.keys() & set(ids)
    known = {node["node_id"]: node for node in held["nodes"]} | only
    for (query, key, _), numbers in zip(found["pair_wise_contributors"], score.pairs, strict=True):
        for name, row in zip((query, key), score.nodes.iloc[numbers].itertuples(), strict=True):
            assert known[name]["ctx_idx"] == max(row.pos, 0)
            if row.kind == "latent":
                assert known[name]["clerp"] == f"{row.site} {row.unit}"
                assert known[name]["activation"] == row.activation
    for side, values in (("q", score.of_queries), ("k", score.of_keys)):
        marginal = found[f"top_{side}_marginal_contributors"]
        assert [value for _, value in marginal] == sorted(values, key=lambda x: -abs(x))[: len(marginal)]
        assert len(marginal) == 10
        assert {name for name, _ in marginal} <= known.keys()
    again = jc.AttributionGraph.from_json(tmp_path / "graph.json")
    assert again.meta["qk_tracing_results"][ids[first]] == found
    again.to_json(tmp_path / "again.json")
    once_more = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    for name in ("qk_only_nodes", "links"):
        assert once_more[name] == held[name]
    results = lambda of: [node.get("qk_tracing_results") for node in of["nodes"]]
    assert results(once_more) == results(held)


def test_scores_that_are_not_of_the_graph(model, tmp_path, untyped):
    tokens = tokens_for(model, 5)
    graph = whole(model, None, tokens)
    score = jc.qk_attribution(model, None, tokens, 1, 0, 4, 2)
    write = lambda qk: graph.to_json(tmp_path / "graph.json", tokens=TEXTS, qk=qk)
    with pytest.raises(
        ValueError, match=r"to_json: qk: the graph has nodes 0 to \d+, the rows of graph.nodes; got 9999"
    ):
        write({9999: score})
    with pytest.raises(
        TypeError, match=r"to_json: qk: of node 0: expected an attention score, as jc.qk_attribution gives"
    ):
        write({0: 3.0})
    with pytest.raises(TypeError, match="to_json: qk: expected attention scores by row of nodes"):
        write([score])
    other = jc.qk_attribution(model, None, (tokens + 1) % 13, 1, 0, 4, 2)
    with pytest.raises(ValueError, match="to_json: qk: the score of node 0 is of another prompt"):
        write({0: other})
    assert not (tmp_path / "graph.json").exists()


BAD = {
    "no JSON": (lambda held: "{", "line 1 is not JSON"),
    "a list": (lambda held: [], "is JSON, and no graph"),
    "no links": (lambda held: {**held, "links": None}, "is JSON, and no graph"),
    "another version": (
        lambda held: {**held, "metadata": {**held["metadata"], "schema_version": 2}},
        "is of schema version 2, and version 1 is known",
    ),
    "no nodes": (lambda held: {**held, "nodes": []}, "has no nodes"),
    "a node without a type": (lambda held: {**held, "nodes": [{"node_id": "x"}]}, "not as schema version 1 has it"),
    "a link to nowhere": (
        lambda held: {**held, "links": [{"source": "E_77_1", "target": "9_9_9", "weight": 1}]},
        "a link names the node '9_9_9'",
    ),
    "a link to a token": (
        lambda held: {**held, "links": [{"source": "0_1_1", "target": "E_77_1", "weight": 1}]},
        "a link leads to 'E_77_1', a node that reads nothing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case, tmp_path):
    change, message = BAD[case]
    held = change(theirs())
    path = tmp_path / "graph.json"
    path.write_text(held if isinstance(held, str) else json.dumps(held), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        jc.AttributionGraph.from_json(path)
