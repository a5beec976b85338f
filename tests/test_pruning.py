"""Circuits made as small as carries what is asked for."""

import json

import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.circuits._prune import _smallest
from jaxcirc.cli import main
from tests.helpers import assert_close, needs_x64
from tests.test_attribution import problem
from tests.test_cli import write_files


@pytest.fixture(scope="module")
def arguments():
    return problem(batch=3, seq=4)


@pytest.fixture(scope="module")
def wide(arguments):
    return jc.discover(*arguments, node_threshold=0.005, edge_threshold=0.0005, method=jc.Gradient())


@needs_x64
@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_the_part_that_reaches_what_is_asked_for(arguments, wide, level):
    asked = 0.7 * jc.evaluate(wide, *arguments, level=level).faithfulness
    assert asked > 0.3
    told = []
    found = jc.prune(wide, *arguments, faithfulness=asked, level=level, progress=lambda *event: told.append(event))
    again = jc.evaluate(found, *arguments, level=level)
    pruned = json.loads(json.dumps(found.meta["pruned"]))
    assert again.faithfulness == pytest.approx(pruned["reached"])
    assert pruned["reached"] >= asked == pruned["faithfulness"]
    assert pruned["interval"] == pytest.approx(again.interval())
    assert (pruned["level"], pruned["prompts"], pruned["reference"]) == (level, 3, "corrupt prompts")
    assert pruned["from"] == {
        "node_threshold": 0.005,
        "edge_threshold": 0.0005,
        "nodes": len(wide.nodes),
        "edges": len(wide.edges),
    }
    assert told[0][0] == 0
    assert told[-1] == (told[0][1], told[0][1], "prune")
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    name, column = ("node_threshold", "effect") if level == "nodes" else ("edge_threshold", "weight")
    table = found.nodes if level == "nodes" else found.edges
    assert 0 < len(table) < len(wide.nodes if level == "nodes" else wide.edges)
    assert table[column].abs().min() > found.meta[name] > wide.meta[name]
    part = wide.above(**{name: found.meta[name]})
    assert len(getattr(part, level)) == len(table)  # the thresholds alone say which circuit it is
    without_idle = jc.evaluate(part, *arguments, level=level)
    assert_close(again.per_prompt["circuit"], without_idle.per_prompt["circuit"])
    if level == "edges":
        assert set(found.nodes["node"]) == {*found.edges["source"], *found.edges["target"]} - {"metric"}
    # A little smaller is not enough.
    sizes = np.sort(np.abs(table[column]))
    smaller = found.above(**{name: sizes[max(1, round(0.03 * len(sizes)))]})
    assert jc.evaluate(smaller, *arguments, level=level).faithfulness < asked


@needs_x64
def test_the_widest_does_not_reach_it(arguments, wide):
    small = wide.above(node_threshold=0.3, edge_threshold=0.2)
    with pytest.raises(
        ValueError,
        match=rf"prune: the whole circuit, {len(small.nodes)} nodes and {len(small.edges)} edges, reaches a faithfulness of -?0\.\d+ by "
        r"edges on these 3 prompts, and 0\.99 was asked for\. Find it with lower thresholds than node_threshold=0\.005 and "
        r"edge_threshold=0\.0005, or ask for less",
    ):
        jc.prune(small, *arguments, faithfulness=0.99)


@pytest.mark.parametrize("most", [1, 2, 3, 10, 1000, 123456])
def test_the_search_ends_within_its_steps(most):
    for wanted in {1, 2, most // 7, most // 2, most - 1, most} - {0}:
        if wanted > most:
            continue
        told, tried = [], []
        found = _smallest(
            most,
            lambda n, wanted=wanted, tried=tried: tried.append(n) or n >= wanted,
            lambda *e, told=told: told.append(e),
        )
        assert wanted <= found <= max(wanted + 1, wanted / 0.97)
        assert len(tried) <= told[-1][0] == told[-1][1]
        assert all(0 < n < most for n in tried)


def test_discover_by_faithfulness(tmp_path, capsys):
    files, out = write_files(tmp_path), tmp_path / "out"
    read = ["--model", "tiny-gpt2", "--saes", str(files / "saes"), "--prompts", str(files / "prompts.jsonl")]
    given = ["discover", *read, "--batch-size", "2", "--method", "gradient", "--out", str(out)]
    assert main([*given, "--faithfulness", "0.6", "--level", "nodes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    circuit = jc.Circuit.load(out)
    assert circuit.meta["pruned"] == said["pruned"]
    assert (said["pruned"]["level"], said["pruned"]["prompts"]) == ("nodes", 4)
    assert said["pruned"]["reached"] >= 0.6
    assert said["pruned"]["from"]["node_threshold"] == 0.01
    assert said["node_threshold"] > 0.01
    assert said["nodes"] == len(circuit.nodes) < said["pruned"]["from"]["nodes"]
    # What is typed is where the search begins, be it the other default.
    for typed, error in (
        (
            ["--node-threshold", "0.1", "--edge-threshold", "0.02"],
            "lower thresholds than --node-threshold 0.1 and --edge-threshold 0.02",
        ),
        (
            ["--faithfulness", "nan"],
            "--faithfulness is a part of the change of the metric, above 0 and up to 1; got nan",
        ),
    ):
        assert main([*given, "--faithfulness", "0.99", *typed]) == 2
        assert error in capsys.readouterr().err.strip().splitlines()[-1]
    assert main([*given, "--level", "nodes"]) == 2
    assert "--level nodes says what --faithfulness is of" in capsys.readouterr().err
    assert main(given) == 0
    assert "are for looking at the strongest parts" in capsys.readouterr().out
