"""The table of attribution graphs by length: that it can be measured, and what it says."""

import json

import jaxtyping
import pytest

from jaxcirc.cli._bench import load


table, point, verbs = load("graphs"), load("_growth_point"), load("_graph_verbs")


@pytest.fixture(autouse=True, scope="module")
def as_users_run_it():
    """Without the suite's type checks, which would be timed too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_small_table(tmp_path, capsys, monkeypatch):
    """In this process, and with few rows."""
    alone = lambda name, of, repeats: point.measure(verbs.GRAPH_VERBS[name], of, repeats)
    monkeypatch.setattr(table, "measure_alone", alone)
    monkeypatch.setattr(verbs, "ROWS", 10)
    assert table.main(["--lengths", "4", "6", "--blocks", "2", "--width", "64", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.strip() == (tmp_path / "graphs.md").read_text(encoding="utf-8").strip()
    assert "| tokens | seconds |" in said
    rows = json.loads((tmp_path / "graphs.json").read_text(encoding="utf-8"))["rows"]
    assert [row["length"] for row in rows] == [4, 6]
    assert all(row["seconds"] > 0 and row["programs"] > 0 for row in rows)


def test_the_graph_has_what_is_measured():
    """Latents are on, and as many as asked for have rows."""
    graph = verbs.attribution_graph(load("_growth_verbs").Point(4, 1, 2, 64))()
    kinds = graph.nodes["kind"].value_counts()
    assert kinds["latent"] > 8
    assert kinds["logit"] == 1
