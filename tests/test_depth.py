"""The table of first calls by depth: that every verb can be measured, and what it says."""

import json

import jaxtyping
import pytest

from jaxcirc.cli._bench import load


depth, point, verbs = load("depth"), load("_growth_point"), load("_depth_verbs")


@pytest.fixture(autouse=True, scope="module")
def as_users_run_them():
    """Without the suite's type checks, which would be timed too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_small_table(tmp_path, capsys, monkeypatch):
    """In this process: that a point can be measured in one of its own is seen to by the growth table's tests."""
    alone = lambda name, of, repeats: point.measure(verbs.DEPTH_VERBS[name], of, repeats)
    monkeypatch.setattr(depth, "measure_alone", alone)
    assert depth.main(["--blocks", "1", "2", "--length", "4", "--width", "8", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert said.strip() == (tmp_path / "depth.md").read_text(encoding="utf-8").strip()
    assert "| verb | 1 blocks | 2 blocks |" in said
    rows = json.loads((tmp_path / "depth.json").read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == [*verbs.DEPTH_VERBS]
    for row in rows:
        assert [each["blocks"] for each in row["points"]] == [1, 2]
        assert all(each["programs"] > 0 and each["first"] >= each["later"] > 0 for each in row["points"])
