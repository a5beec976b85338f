"""The table of mean Jacobians against forward passes: that it can be measured, and what it says."""

import json

import jaxtyping
import pytest

from jaxcirc.cli._bench import load


table = load("means")


@pytest.fixture(autouse=True, scope="module")
def as_users_run_it():
    """Without the suite's type checks, which would be timed too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_a_small_table(tmp_path, capsys):
    sizes = {"layers": (0, 1), "positions": (40,), "length": (8,), "width": (64,), "together": (16,), "repeats": (1,)}
    arguments = [word for name, values in sizes.items() for word in (f"--{name}", *map(str, values))]
    assert table.main([*arguments, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == (tmp_path / "means.md").read_text(encoding="utf-8").strip()
    rows = json.loads((tmp_path / "means.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["layer"], row["positions"]) for row in rows] == [(0, 40), (1, 40)]
    assert all(0 < row["error"] < 1e-4 and row["ratio"] > 0 for row in rows)


def test_what_is_not_equal_is_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_exact", lambda block, x: 2 * table.jnp.ones((64, 64)))
    with pytest.raises(ValueError, match="layer 0: relative error"):
        table.main(["--layers", "0", "--positions", "8", "--length", "8", "--width", "64", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())
