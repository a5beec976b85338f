"""Commands about circuits that are there: each prints, and writes, what its verb gives."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.cli import main
from jaxcirc.cli._language import PYTHON

from .helpers import assert_close, said
from .test_cli import discover, files as files, given as given


pytestmark = pytest.mark.usefixtures("same_cache")


@pytest.fixture(scope="module")
def circuit(files):
    """The folder of a circuit."""
    options = ["--saes", str(files / "saes"), "--batch-size", "2", "--method", "gradient", "--json", "--quiet"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert discover(files / "prompts.jsonl", files / "found", *options) == 0
    return files / "found"


@pytest.fixture(scope="module")
def pairs(files):
    return jc.data.load_prompts(files / "prompts.jsonl", jc.load_tokenizer("tiny-gpt2"))


@pytest.fixture(scope="module")
def arguments(circuit, files, model, pairs):
    return jc.Circuit.load(circuit), model, jc.load_saes(files / "saes"), pairs.clean, pairs.corrupt, pairs.metric()


@pytest.fixture(scope="module")
def graph(model):
    return jc.localisation.benchmark_graph(model)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def column(rows, name):
    return np.array([float(row[name]) for row in rows])


@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_minimality(level, circuit, given, arguments, tmp_path, capsys):
    out = tmp_path / "parts.csv"
    command = ["minimality", "--circuit", circuit, *given, "--level", level, "--strongest", 3, "--out", out]
    found = said(capsys, *command)
    want = jc.minimality(*arguments, level=level, most=3, batch_size=2)
    assert np.abs(want["lost"].to_numpy()).max() > 0.1
    for name in ("lost", "without"):
        assert_close(column(found["rows"], name), want[name].to_numpy(), tolerance=1e-3)
        assert_close(column(rows_of(out), name), want[name].to_numpy(), tolerance=1e-3)
    names = [name for name in ("node", "source", "target") if name in want]
    assert [[row[name] for name in names] for row in found["rows"]] == want[names].to_numpy().tolist()
    whole = jc.evaluate(*arguments, level=level, batch_size=2).faithfulness
    assert found["faithfulness"] == pytest.approx(whole, abs=1e-4)
    assert (found["prompts"], found["out"]) == (4, str(out))
    assert main([*map(str, command[:-2]), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"the whole circuit carries {whole:.3f} of the metric" in printed
    assert want[names[0]][0] in printed


def test_recovery_curve(circuit, given, arguments, tmp_path, capsys):
    out, drawn = tmp_path / "curve.csv", tmp_path / "curve.svg"
    command = ["recovery-curve", "--circuit", circuit, *given, "--cut-at", 0.1, 0.5, "--seed", 3]
    found = said(capsys, *command, "--out", out, "--plot", drawn)
    want = jc.recovery_curve(*arguments, thresholds=[0.1, 0.5], seed=3, batch_size=2)
    large, small = want["nodes"].tolist()
    assert large > small > 0
    for name in ("threshold", "nodes", "edges", "faithfulness", "low", "high", "completeness", "random"):
        assert_close(column(found["rows"], name), want[name].to_numpy(float), tolerance=1e-3)
        assert_close(column(rows_of(out), name), want[name].to_numpy(float), tolerance=1e-3)
    assert "share of the metric recovered" in drawn.read_text()
    assert main([*map(str, command), "--limit", "1", "--quiet"]) == 0
    assert "61 nodes, 215 edges, 1 prompt; kept by their nodes' effects" in capsys.readouterr().out


def test_prune_saves_the_smaller_circuit(circuit, given, arguments, tmp_path, capsys):
    options = ["--circuit", circuit, *given, "--level", "nodes"]
    found = said(capsys, "prune", *options, "--faithfulness", 0.3, "--out", tmp_path / "small")
    want = jc.prune(*arguments, faithfulness=0.3, level="nodes", batch_size=2)
    small = jc.Circuit.load(tmp_path / "small")
    assert 0 < len(want.nodes) < len(arguments[0].nodes)
    assert small.nodes["node"].tolist() == want.nodes["node"].tolist()
    assert (found["nodes"], found["edges"]) == (len(want.nodes), len(want.edges))
    assert want.meta.pruned is not None
    assert found["pruned"]["reached"] == pytest.approx(want.meta.pruned["reached"], abs=1e-3)
    assert (tmp_path / "small" / "circuit.html").exists()
    assert main([*map(str, ["prune", *options, "--faithfulness", 1, "--out", tmp_path / "none"]), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "and 1 was asked for. Find it with lower thresholds than --node-threshold 0.1 and --edge-threshold " in line
    assert not PYTHON.search(line)
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def effects(model, pairs, graph):
    """Of every prompt, as the commands compute them."""
    of_pairs = model, pairs.clean, pairs.corrupt, pairs.metric()
    return np.asarray(jc.edge_attribution(*of_pairs, steps=2, start="corrupt", derivatives="lrp", graph=graph))


def test_circuit_stability(files, graph, effects, tmp_path, capsys):
    given = ["--model", "tiny-gpt2", "--prompts", files / "prompts.jsonl", "--steps", 2, "--derivatives", "lrp"]
    chosen = ["--keep", 0.1, "--draws", 20, "--seed", 5, "--ranking", "absolute", "--how", "greedy"]
    out = tmp_path / "edges.csv"
    found = said(capsys, "circuit-stability", *given, *chosen, "--out", out)
    want = jc.localisation.stability(graph, -effects, 0.1, by="absolute", how="greedy", draws=20, seed=5)
    assert 0 < want.mean < 1
    assert found["mean"] == pytest.approx(want.mean, abs=0.02)  # where rounding decides between two edges
    assert found["circuit"] == int(0.1 * graph.n_edges)
    frequency = np.zeros(graph.edges.shape)
    for row in rows_of(out):
        frequency[graph.sender(row["sender"]), graph.receiver(row["receiver"])] = float(row["frequency"])
    assert np.abs(frequency - want.frequency).max() <= 0.11
    assert [row["frequency"] for row in found["rows"]] == column(rows_of(out), "frequency").tolist()
    assert {row["sign"] for row in found["rows"]} >= {-1, 1}
    assert main([*map(str, ["circuit-stability", *given, *chosen, "--top", 3]), "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert f"two of these circuits share {found['mean']:.3f} of their edges on average" in printed
    assert printed.count(" -> ") == 3


def test_circuit_roc(model, graph, effects, tmp_path, capsys):
    scores = -effects.mean(0)
    known = jc.localisation.select_edges(graph, effects[0], 40, by="absolute")
    jc.localisation.save_scores(jc.localisation.EdgeScores.of(model, scores), tmp_path / "scores.json")
    jc.localisation.save_scores(jc.localisation.EdgeScores.of(model, kept=known), tmp_path / "known.json")
    out, given = tmp_path / "roc.csv", [tmp_path / "scores.json", "--known", tmp_path / "known.json"]
    for points in ("all", "benchmark"):
        found = said(capsys, "circuit-roc", *given, "--points", points, "--out", out)
        want = {by: jc.localisation.roc(graph, scores, known, by=by, points=points) for by in ("signed", "absolute")}
        assert want["absolute"].area > 0.5
        (row,) = found["rows"]
        assert row["scores"] == str(tmp_path / "scores.json")
        for by, each in want.items():
            assert row[by] == pytest.approx(each.area, abs=1e-6)
            points_of = [point for point in rows_of(out) if point["ranking"] == by]
            assert_close(column(points_of, "true"), each.true, tolerance=1e-6)
            assert_close(column(points_of, "false"), each.false, tolerance=1e-6)
    assert (found["true"], found["edges"]) == (40, graph.n_edges)
    assert main([*map(str, ["circuit-roc", *given]), "--quiet"]) == 0
    assert "40 of 479 edges are in the circuit of known.json" in capsys.readouterr().out
    for scores_of, circuit_of, message in (
        (given[0], given[0], "0 of 479 edges are in the circuit. Give a file with some edges in it"),
        (given[2], given[2], "has edges without a score. Give a file with a score of every edge."),
    ):
        assert main(["circuit-roc", str(scores_of), "--known", str(circuit_of)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    other = tmp_path / "other.json"
    config = json.loads(given[2].read_text())
    config["cfg"]["d_model"] += 1
    other.write_text(json.dumps(config))
    assert main(["circuit-roc", str(given[0]), "--known", str(other)]) == 2
    assert "are of different models. Give scores and a circuit of one." in capsys.readouterr().err


def test_circuit_curve_of_other_derivatives(files, model, graph, effects, tmp_path, capsys):
    out = tmp_path / "scores.json"
    given = ["circuit-curve", "--model", "tiny-gpt2", "--prompts", files / "prompts.jsonl"]
    found = said(capsys, *given, "--steps", 2, "--derivatives", "lrp", "--out", out)
    assert (found["steps"], found["derivatives"]) == (2, "lrp")
    there = np.asarray(graph.edges)
    assert_close(jc.localisation.load_scores(out, model).scores[there], -effects.mean(0)[there], tolerance=1e-3)


def test_a_job_is_of_its_derivatives(files, model, pairs, tmp_path, capsys):
    given = ["--model", "tiny-gpt2", "--prompts", files / "prompts.jsonl", "--verb", "edge-attribution"]
    command = list(map(str, ["attribute", *given, "--edge-threshold", 0.1, "--out", tmp_path / "job", "--quiet"]))
    assert main([*command, "--derivatives", "lrp"]) == 0
    of_pairs = model, pairs.clean, pairs.corrupt, pairs.metric()
    want = np.asarray(jc.edge_attribution(*of_pairs, derivatives="lrp"))
    exact = np.asarray(jc.edge_attribution(*of_pairs))
    table = jc.jobs.read_shards(tmp_path / "job")
    strong = np.abs(want) > 0.1
    assert table.num_rows == strong.sum() > 10
    assert_close(np.sort(table["effect"].to_numpy()), np.sort(want[strong]), tolerance=1e-3)
    assert np.abs(want - exact).max() > 0.1
    capsys.readouterr()
    for more, message in (
        ([], 'derivatives was "lrp" and is "exact"'),
        (["--verb", "heads"], "--edge-threshold says nothing of --verb heads"),
    ):
        assert main([*command, *more]) == 2
        assert message in capsys.readouterr().err


def test_a_job_refuses_other_derivatives(untyped):
    with pytest.raises(
        ValueError, match="edge-attribution: derivatives must be 'exact' or 'lrp' or 'detached', got 'magic'"
    ):
        jc.jobs.JobOfEdgeAttribution(derivatives="magic")  # type: ignore[arg-type]


CIRCUIT = ["--circuit", "CIRCUIT", "--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--prompts", "PROMPTS"]
PROMPTS = ["--model", "tiny-gpt2", "--prompts", "PROMPTS"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["minimality", *CIRCUIT, "--strongest", "0"], "--strongest is how many parts to try, at least 1; got 0"),
        (["minimality", *CIRCUIT, "--out", "x.txt"], "--out: x.txt does not end in .csv."),
        (["minimality", *CIRCUIT[2:]], "the following arguments are required: --circuit"),
        (["minimality", "--circuit", "none", *CIRCUIT[2:]], "--circuit none: No such folder."),
        (["minimality", *CIRCUIT], "CIRCUIT"),
        (["recovery-curve", *CIRCUIT, "--cut-at", "-1"], "--cut-at is a size that others are compared with, 0 or more"),
        (["recovery-curve", *CIRCUIT, "--plot", "x.txt"], "--plot"),
        (
            ["recovery-curve", *CIRCUIT, "--out", "x.parquet"],
            "--out: x.parquet does not end in .csv.",
        ),
        (["prune", *CIRCUIT, "--faithfulness", "2"], "--faithfulness is a part of the change of the metric, above 0"),
        (["prune", *CIRCUIT, "--out", "PROMPTS"], "--out: PROMPTS"),
        (["circuit-stability", *PROMPTS, "--keep", "0"], "--keep is a part of the edges, above 0 and up to 1; got 0"),
        (["circuit-stability", *PROMPTS, "--keep", "0.001"], "--keep 0.001 is no edge of the 479 of tiny-gpt2."),
        (
            ["circuit-stability", *PROMPTS, "--draws", "1"],
            "--draws is how many samples of the prompts, at least 2; got 1",
        ),
        (
            ["circuit-stability", *PROMPTS, "--limit", "1"],
            "Samples are drawn from two prompts or more, and there is one.",
        ),
        (["circuit-stability", *PROMPTS[:2]], "one of the arguments --prompts and --ioi is required, and not both."),
        (["circuit-roc", "none.json", "--known", "PROMPTS"], "none.json: No such file."),
        (["circuit-roc", "PROMPTS", "--known", "PROMPTS"], "PROMPTS"),
        (["circuit-curve", *PROMPTS, "--scores", "PROMPTS", "--derivatives", "lrp"], "--derivatives is of scores that"),
        (["circuit-curve", *PROMPTS, "--scores", "PROMPTS", "--steps", "3"], "--steps is of scores that are computed"),
        (
            ["attribute", *PROMPTS, "--verb", "heads", "--derivatives", "lrp", "--out", "o"],
            "--derivatives says nothing of",
        ),
    ],
)
def test_bad_input_is_one_line(command, message, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "PROMPTS").write_bytes((files / "prompts.jsonl").read_bytes())
    (tmp_path / "CIRCUIT").mkdir()
    assert main([*command, "--quiet"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert message in line
    assert not PYTHON.search(line)
    assert captured.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CIRCUIT", "PROMPTS"]
