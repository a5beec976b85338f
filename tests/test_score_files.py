"""Files of edge scores as the circuit-localisation benchmark exchanges them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.localisation import (
    benchmark_graph,
    EdgeScores,
    load_scores,
    load_submission,
    prune,
    save_scores,
    save_submission,
    select_edges,
    SIZES,
)

from .helpers import model_named


GPT2, LLAMA = model_named("gpt2"), model_named("llama")
GRAPH = benchmark_graph(GPT2)


def with_torch(suffix):
    if suffix == ".pt":
        pytest.importorskip("torch")


@pytest.fixture
def scores():
    values = np.random.default_rng(0).normal(size=GRAPH.edges.shape).astype(np.float32) + 0.2
    return EdgeScores.of(GPT2, values, kept=prune(GRAPH, select_edges(GRAPH, values, 20)))


def same(a, b):
    assert (a.graph, a.d_model) == (b.graph, b.d_model)
    for name in ("scores", "kept", "node_scores"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=name != "kept"), name


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_scores_and_a_circuit_round_trip(scores, tmp_path, suffix):
    with_torch(suffix)
    path = tmp_path / f"importances{suffix}"
    save_scores(scores, path)
    for read in (load_scores(path), load_scores(path, GPT2)):
        same(read, scores)
    assert scores.scored
    renamed = tmp_path / "named-otherwise"
    path.rename(renamed)
    same(load_scores(renamed), scores)


def test_names_are_the_benchmarks(scores, tmp_path):
    save_scores(scores, tmp_path / "s.json")
    whole = json.loads((tmp_path / "s.json").read_text("utf-8"))
    assert whole["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}
    assert list(whole["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert len(whole["edges"]) == GRAPH.n_edges
    assert set(whole["edges"]) >= {"input->a0.h0<q>", "a0.h1->a1.h0<v>", "m0->m1", "a1.h1->logits"}
    sizes = whole["edges"]["m0->a1.h1<k>"]
    assert sizes["score"] == scores.scores[GRAPH.edge("m0->a1.h1.k")]
    assert sizes["in_graph"] == bool(scores.kept[GRAPH.edge("m0->a1.h1.k")])
    inside = {GRAPH.senders[i] for i in np.flatnonzero(scores.kept.any(1))}
    assert {name for name, node in whole["nodes"].items() if node["in_graph"]} == {
        "logits",
        *("input" if name == "embed" else name for name in inside),
    }


def test_tensors_are_in_the_benchmarks_order(scores, tmp_path):
    torch = pytest.importorskip("torch")
    save_scores(scores, tmp_path / "s.pt")
    held = torch.load(tmp_path / "s.pt", weights_only=True)
    H, L = 2, 2
    assert held["edges_scores"].shape == (1 + L * (H + 1), L * (3 * H + 1) + 1)
    for layer in range(L):
        for head in range(H):
            sender = 1 + layer * (H + 1) + head
            assert held["src_nodes"][sender] == f"a{layer}.h{head}"
            for p, part in enumerate("qkv"):
                assert held["dst_nodes"][layer * (3 * H + 1) + p * H + head] == f"a{layer}.h{head}<{part}>"
        assert (
            held["src_nodes"][1 + layer * (H + 1) + H] == held["dst_nodes"][layer * (3 * H + 1) + 3 * H] == f"m{layer}"
        )
    assert (held["src_nodes"][0], held["dst_nodes"][-1]) == ("input", "logits")
    assert held["edges_in_graph"].dtype == held["nodes_in_graph"].dtype == torch.bool
    assert held["edges_scores"].dtype == torch.float32


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_heads_that_share_keys_have_inputs_of_their_own(tmp_path, suffix):
    with_torch(suffix)
    graph = benchmark_graph(LLAMA)
    assert (graph.n_heads, graph.n_kv_heads) == (4, 4)
    scores = EdgeScores.of(LLAMA, np.random.default_rng(0).normal(size=graph.edges.shape).astype(np.float32))
    save_scores(scores, tmp_path / f"s{suffix}")
    same(load_scores(tmp_path / f"s{suffix}", LLAMA), scores)


def test_a_circuit_alone_has_no_scores(tmp_path):
    circuit = EdgeScores.of(GPT2, kept=GRAPH.mask(["embed->m0", "m0->logits"]))
    save_scores(circuit, tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text("utf-8"))["edges"]["input->m0"] == {"in_graph": True}
    read = load_scores(tmp_path / "c.json", GPT2)
    same(read, circuit)
    assert not read.scored
    assert read.sign == "none"
    with pytest.raises(ValueError, match=r"46 of 46 edges are not scored \(NaN\), such as embed->a0\.h0\.q"):
        select_edges(read.graph, read.scores, 3)


def test_scores_of_nodes(scores, tmp_path):
    save_scores(scores, tmp_path / "s.json")
    whole = json.loads((tmp_path / "s.json").read_text("utf-8"))
    for i, name in enumerate(whole["nodes"]):
        whole["nodes"][name]["score"] = float(i)
    (tmp_path / "s.json").write_text(json.dumps(whole), encoding="utf-8")
    read = load_scores(tmp_path / "s.json", GPT2)
    assert read.node_scores.tolist() == list(range(7)), "that of the logits is not read"
    assert select_edges(GRAPH, read.node_scores, 1).any(1).argmax() == 6
    for suffix in (".json", ".pt"):
        with_torch(suffix)
        save_scores(read, tmp_path / f"again{suffix}")
        same(load_scores(tmp_path / f"again{suffix}"), read)


def test_a_score_that_is_infinite_is_not_written(tmp_path):
    values = np.zeros(GRAPH.edges.shape)
    values[GRAPH.edge("m0->logits")] = -np.inf
    with pytest.raises(ValueError, match="files hold finite numbers, and edge m0->logits has none"):
        save_scores(EdgeScores.of(GPT2, values), tmp_path / "s.json")
    assert not list(tmp_path.iterdir())


def test_the_sign_of_a_file_is_said(scores, tmp_path):
    rng = np.random.default_rng(0)
    helps = np.abs(rng.normal(size=GRAPH.edges.shape))
    helps[GRAPH.edge("m0->logits")] = -0.3
    for values, sign in ((helps, "helps"), (-helps, "hurts"), (np.abs(helps), "none")):
        save_scores(EdgeScores.of(GPT2, values), tmp_path / "s.json")
        if sign == "hurts":
            with pytest.warns(
                UserWarning, match=r"a score above 0 means that the edge hurts\. The benchmark has it the other way"
            ):
                read = load_scores(tmp_path / "s.json")
        else:
            read = load_scores(tmp_path / "s.json")
        assert read.sign == sign
    wrong = [EdgeScores.of(GPT2, rng.normal(size=GRAPH.edges.shape)).sign == "hurts" for _ in range(300)]
    assert np.mean(wrong) < 0.05, "random signs are hardly ever taken for the opposite"


# What is wrong with a file


@pytest.fixture
def tell(scores, tmp_path):
    """Says what reading says of a file that differs from a good one."""
    path = tmp_path / "s.json"
    save_scores(scores, path)
    good = path.read_text("utf-8")

    def tell(change, match, model=None):
        whole = json.loads(good)
        change(whole)
        path.write_text(json.dumps(whole), encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            load_scores(path, model)

    return tell


def test_what_is_wrong_with_json_is_told(tell):
    tell(lambda w: w["edges"].pop("m0->m1"), "lacks 1 of the model's 46 edges, such as m0->m1. Write every edge")
    tell(lambda w: w["edges"].update({"m1->m0": {}}), "has 1 edge that the model of its cfg has not, such as m1->m0")
    tell(lambda w: w["edges"].update({"m0->m1": {"score": 1.0}}), "edge m0->m1: expected an object with in_graph")
    tell(lambda w: w["edges"]["m0->m1"].update(score="1"), "edge m0->m1: the score must be a number, got '1'")
    tell(lambda w: w["nodes"].update({"m7": {}}), "node m7 is none of the model of its cfg")
    tell(lambda w: w["nodes"]["m0"].update(neurons=[True]), r"scores of single neurons \(node m0\)")
    tell(lambda w: w.pop("cfg"), "has no cfg. Expected a file of edge scores")
    tell(lambda w: w["cfg"].pop("d_model"), "lacks d_model in its cfg")
    tell(lambda w: w["cfg"].update(n_heads=2.5), "cfg: n_heads must be a whole number of at least 1, got 2.5")
    tell(lambda w: w.pop("nodes"), "is not a file of edge scores, a JSON object with cfg, nodes and edges")
    nothing = lambda w: None
    tell(nothing, r"of another model than random: heads 2 in the file, 4 in the model\. Give the model", LLAMA)
    tell(lambda w: w["cfg"].update(d_model=768), "d_model 768 in the file, 16 in the model", GPT2)
    tell(
        lambda w: w["cfg"].update(parallel_attn_mlp=True),
        "has 4 edges that the model of its cfg has not, such as a0.h0->m0",
        GPT2,
    )


def test_what_is_no_file_of_scores_is_told(tmp_path):
    path = tmp_path / "s.json"
    for text, match in (
        ("{", "line 1 is not JSON"),
        ("[]", "is not a file of edge scores"),
        ("<html>", "looks like a web page"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            load_scores(path)
    with pytest.raises(OSError, match="nowhere"):
        load_scores(tmp_path / "nowhere.json")


def test_what_is_wrong_with_tensors_is_told(scores, tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "s.pt"
    save_scores(scores, path)
    good = torch.load(path, weights_only=True)

    class Code:
        def __reduce__(self):
            return print, ("code has run",)

    for change, match in (
        ({"edges_scores": torch.zeros(3, 3)}, r"edges_scores: expected a tensor \[7, 15\], got \[3, 3\]"),
        ({"edges_scores": [1.0]}, r"edges_scores: expected a tensor \[7, 15\], got list"),
        (
            {"src_nodes": ["input", "m0"]},
            "src_nodes are not those of the model of its cfg: m0 where a0.h0 was expected",
        ),
        (
            {"dst_nodes": good["dst_nodes"][:-1]},
            "dst_nodes are not those of the model of its cfg: 14 where 15 was expected",
        ),
        ({"neurons_in_graph": torch.zeros(7, 16)}, "scores of single neurons"),
        ({"cfg": None}, "has no cfg"),
        ({"more": Code()}, "holds more than weights, and loading it could run code, so it is refused"),
    ):
        torch.save(good | change, path)
        with pytest.raises(ValueError, match=match):
            load_scores(path)
    torch.save({name: value for name, value in good.items() if name != "edges_in_graph"}, path)
    with pytest.raises(ValueError, match=r"is not a file of edge scores \(it lacks edges_in_graph\)"):
        load_scores(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match=r"is not a file of edge scores\. Expected a dict"):
        load_scores(path)
    whole_rows = torch.ones(7, 15, dtype=torch.bool)  # as files of nodes have it
    torch.save(good | {"edges_in_graph": whole_rows}, path)
    assert (load_scores(path).kept == GRAPH.edges).all()


def test_scores_are_of_the_benchmarks_graph(tmp_path, untyped):
    of_pairs = np.zeros(jc.component_graph(LLAMA).edges.shape)
    with pytest.raises(ValueError, match=r"EdgeScores\.of: scores: the graph has 11 senders and 27 receivers"):
        EdgeScores.of(LLAMA, of_pairs)
    with pytest.raises(ValueError, match=r"scores are written as \.json or \.pt, and s\.txt is neither"):
        save_scores(EdgeScores.of(GPT2, kept=GRAPH.edges), tmp_path / "s.txt")
    with pytest.raises(TypeError, match=r"save_scores: scores: expected what jc\.localisation\.EdgeScores\.of"):
        save_scores(of_pairs, tmp_path / "s.json")


# Submissions


def nine(graph, values):
    return [EdgeScores.of(GPT2, kept=select_edges(graph, values, size)) for size in SIZES[:-1]]


@pytest.mark.parametrize("suffix", [".json", ".pt"])
def test_a_submission_round_trips(scores, tmp_path, suffix):
    with_torch(suffix)
    circuits = nine(GRAPH, scores.scores)
    folder = save_submission(tmp_path, "ioi", "gpt2", scores, suffix=suffix)
    assert [file.name for file in folder.iterdir()] == [f"importances{suffix}"]
    save_submission(tmp_path, "arc-easy", "llama3", circuits, suffix=suffix)
    (tmp_path / "notes").mkdir()
    read = load_submission(tmp_path)
    assert set(read) == {("ioi", "gpt2"), ("arc-easy", "llama3")}
    same(read["ioi", "gpt2"], scores)
    for a, b in zip(read["arc-easy", "llama3"], circuits, strict=True):
        assert (a.kept == b.kept).all()
    given = np.stack([circuit.kept for circuit in read["arc-easy", "llama3"]])
    clean, corrupt = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 2, 5)), jnp.int32)
    metric = jc.LogitDiff([1, 2], 3)
    found = jc.circuit_curve(GPT2, clean, corrupt, metric, given, graph=GRAPH, sizes=SIZES[:-1])
    assert found.values.shape == (9, 2), "circuits have a curve as scores have"


def test_what_is_wrong_with_a_submission_is_told(scores, tmp_path, untyped):
    circuits = nine(GRAPH, scores.scores)
    for call, match in (
        (lambda: save_submission(tmp_path, "IOI", "gpt2", scores), "save_submission: task must be 'ioi' or"),
        (lambda: save_submission(tmp_path, "ioi", "gpt3", scores), "save_submission: model_name must be 'gpt2' or"),
        (lambda: save_submission(tmp_path, "ioi", "gpt2", circuits[:5]), "expected nine circuits, got 5"),
        (lambda: save_submission(tmp_path, "ioi", "gpt2", circuits[0]), "edges here have none. Give scores, or nine"),
        (lambda: save_submission(tmp_path, "ioi", "gpt2", circuits[::-1]), r"at most 0\.1% has 23 of 46 edges"),
        (
            lambda: save_submission(tmp_path, "ioi", "gpt2", [1] * 9),
            "expected scores, or a list of nine circuits, got 1",
        ),
        (lambda: load_submission(tmp_path), "has no folder such as ioi_gpt2"),
        (lambda: load_submission(tmp_path / "none"), "is not a folder"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            call()
    save_submission(tmp_path, "ioi", "gpt2", scores)
    with pytest.warns(UserWarning, match="has 1 task and 1 model; a submission takes two of each"):
        load_submission(tmp_path)
    save_scores(scores, tmp_path / "ioi_gpt2" / "more.json")
    with pytest.raises(ValueError, match=r"ioi_gpt2 has 2 files\. Expected one with scores, or nine with circuits"):
        load_submission(tmp_path)
