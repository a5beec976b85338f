"""The benchmarks without PyTorch: that they run, refuse what is not equal, and say what they measured."""

import copy
import json

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxcirc
from jaxcirc.cli import main
from jaxcirc.cli._bench import load

from . import figures


report, plots, row_module = load("_report"), load("_plots"), load("_row")
measure_module, timing, work = load("_measure"), load("_timing"), load("_work")
load("rows")
SETTINGS = measure_module.Settings("quick", repeats=1, precision="highest", memory=False, compiled=False, rate=1e9)


@pytest.fixture(autouse=True, scope="module")
def as_users_run_them():
    """Without PyTorch, whether it is there or not, and without the suite's type checks, which would be timed too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load("peers"), "missing", lambda: "PyTorch is not installed")
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


def measured(name: str, row=None) -> dict:
    return measure_module.measure(name, row or row_module.make_row(name, "quick"), SETTINGS, lambda said: None)


@pytest.fixture(scope="module")
def results() -> dict:
    machine = load("_settings").describe("highest")
    plot = {
        **{"name": "m", "label": "M", "fixed": {"k": 8}, "values": [1, 10, 100]},
        "seconds": {"jaxcirc": [0.01, 0.02, 0.5], "<peer>": [0.1, 1.0, 10.0]},
    }
    return {
        "machine": machine,
        "size": "quick",
        "matmul_rate": 1e9,
        "rows": [measured("attention-block")],
        "plots": [plot],
    }


def test_every_row_is_there():
    assert list(row_module.ROWS) == [
        *("attention-block", "attention-block-frozen", "mlp-block", "block", "grouped-attention-block"),
        *("two-blocks", "six-blocks"),
        *(
            "feature-jacobian",
            "full-one-block",
            "full-several-blocks",
            "sae-edges",
            "lens",
            "node-edges",
            "patching",
            "path-patching",
            "scrubbing",
            "self-repair",
        ),
        *("circuit-nodes", "circuit-edges", "exact-edges", "edge-attribution"),
    ]
    assert all(set(sizes) == {"quick", "small", "xl"} for _, sizes in row_module.ROWS.values())


@pytest.mark.parametrize(
    "name",
    [
        *(
            "mlp-block",
            "grouped-attention-block",
            "six-blocks",
            "sae-edges",
            "feature-jacobian",
            "full-one-block",
            "lens",
            "node-edges",
            "patching",
            "scrubbing",
            "path-patching",
            "self-repair",
        ),
        *("circuit-nodes", "circuit-edges", "exact-edges", "edge-attribution"),
    ],
)
def test_a_row_equals_jvp_and_has_all_numbers(name):
    found = measured(name)
    assert 0 < found["ours"]["error_against_jvp"] < 1e-5
    assert found["ours"]["seconds"]["median"] > 0
    assert found["work"]["own"] > 0
    skipped = [rival["name"] for rival in found["rivals"] if "skipped" in rival]
    assert any("PyTorch" in rival for rival in skipped)
    assert all(rival["ratio"]["min"] > 0 for rival in found["rivals"] if "skipped" not in rival)


def planted(row, change):
    """The row with a rival of numpy's that has another result."""
    numbers = np.array(row.prepare()())
    rival = row_module.Rival(
        "planted", ("plain",), lambda *_: lambda: change(numbers), lambda ours, *_: ours, "rows", 1, 1, 1
    )
    return row._replace(rivals=(rival._replace(in_torch=False),))


def test_a_wrong_rival_is_refused():
    row = row_module.make_row("mlp-block", "quick")

    def wrong(numbers):
        numbers = numbers.copy()
        numbers[-1, np.argmax(np.abs(numbers[-1]))] *= 1.01
        return numbers

    assert measured("mlp-block", planted(row, lambda numbers: numbers))["rivals"][0]["ratio"]["median"] > 0
    with pytest.raises(timing.Unequal, match="ours against planted, plain: relative error"):
        measured("mlp-block", planted(row, wrong))


def test_a_wrong_result_of_ours_is_refused():
    row = row_module.make_row("mlp-block", "quick")
    prepare = row.prepare
    wrong = row._replace(prepare=lambda: lambda: prepare()() * jnp.asarray(1.01, jnp.float32))
    with pytest.raises(timing.Unequal, match=r"ours against jax\.jvp"):
        measured("mlp-block", wrong)
    with pytest.raises(timing.Unequal, match="nothing to compare"):
        timing.relative_error(np.zeros(3), np.zeros(3))


def test_unequal_sides_are_exit_code_1_and_have_no_times(monkeypatch, tmp_path, capsys):
    def unequal(*_):
        raise timing.Unequal("planted: relative error 1, more than 0.0001.")

    command = load("__main__")
    monkeypatch.setattr(command, "measure", unequal)
    assert main(["bench", "--quick", "--rows", "block", "--out", str(tmp_path), "--json"]) == 1
    said = capsys.readouterr()
    (row,) = json.loads(said.out)["rows"]
    assert row["failed"].startswith("planted")
    assert "ours" not in row
    assert "FAILED: planted" in said.err
    assert "block failed: planted" in (tmp_path / "jacobians.md").read_text()


def test_an_unknown_row_is_named(tmp_path, capsys):
    assert main(["bench", "--quick", "--rows", "blok", "--out", str(tmp_path)]) == 2
    assert "No benchmark is called 'blok'; there are attention-block" in capsys.readouterr().err


def test_the_report_comes_back_and_fills_the_readme_once(results, tmp_path):
    report.write(results, tmp_path, "some")
    back = report.read(tmp_path / "some.json")
    assert back == json.loads(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- benchmarks: begin some -->\n<!-- benchmarks: end -->\nafter\n")
    fill = load("readme").main
    options = ["--results", str(tmp_path), "--readme", str(readme)]
    assert fill([*options, "--check"]) == 1
    assert fill(options) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| attention-block | d_model 32" in text
    assert f"jax {results['machine']['jax']}" in text
    assert fill([*options, "--check"]) == 0
    for wrong in ("no markers", "<!-- benchmarks: begin some -->", f"{text}<!-- benchmarks: end -->"):
        with pytest.raises(ValueError, match="Expected <!-- benchmarks: begin NAME -->"):
            report.fill(wrong, tmp_path)


def test_committed_tables_are_those_of_the_numbers_beside_them():
    for name in (*report.EXPERIMENTS, "jacobians"):
        assert report.table(report.read(report.RESULTS / f"{name}.json")) == (report.RESULTS / f"{name}.md").read_text()


def test_the_brief_table_keeps_what_is_lost(tmp_path):
    for name in report.EXPERIMENTS:
        found = report.read(report.RESULTS / f"{name}.json")
        for rival in (rival for row in found["rows"] if row["name"] == "self-repair" for rival in row["rivals"]):
            rival["ratio"] = dict.fromkeys(rival["ratio"], 0.5)
        (tmp_path / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    rows = report.brief(tmp_path).splitlines()[2:]
    ratios = {row.split(" | ")[0].strip("| "): float(row.split(" | ")[5].strip(" |")) for row in rows}
    assert ratios["self-repair"] == 0.5
    assert ratios["circuit-edges"] > 1


def test_the_table_says_what_was_timed_in_part(results):
    one = copy.deepcopy(results)
    took = {"median": 2.0, "min": 1.0, "max": 3.0, "runs": 3}
    part = {
        "name": "peer",
        "variant": "vmap 8",
        "unit": "rows",
        "all": 64,
        "timed": 16,
        "tried_with": 8,
        "scale": 4.0,
        "error": 1e-6,
    }
    part |= {"seconds": took, "ratio": took, "linearity": {"8": 0.3, "16": 0.2}}
    one["rows"][0]["rivals"] = [part, {"name": "compiled peer", "skipped": "no compiler"}]
    table = report.table(one)
    assert "| peer (vmap 8) | 2 s* | 2 (1 to 3) | 1e-06 |" in table
    assert (
        "16 of 64 rows were timed and scaled linearly; with 8 instead, the time of one was 1.50 times as long" in table
    )
    assert "| compiled peer | no compiler |" in table
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_the_plot_has_ticks_and_a_guide(results, tmp_path):
    figure = plots.draw(results["plots"], tmp_path / "some.svg")
    assert "&lt;peer&gt;" in (tmp_path / "some.svg").read_text("utf-8")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "M\nk 8"
    assert figures.names(axes, "x") == ["1", "10", "100"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["jaxcirc", "<peer>", "slope 1"]
    ours, peer, guide = ([np.log10(data) for data in line.get_data()] for line in axes.get_lines())
    slope = lambda ends: (ends[1][-1] - ends[1][0]) / (ends[0][-1] - ends[0][0])
    # The peer's time grows in proportion to M, so its curve is parallel to the guide.
    assert slope(guide) == pytest.approx(slope(peer)) == pytest.approx(1)
    assert slope(ours) != pytest.approx(1, rel=0.02)
    assert guide[1][-1] == pytest.approx(ours[1][-1])


def test_arithmetic_of_a_full_jacobian_is_that_of_its_unit_vectors():
    sizes = {"d_model": 8, "heads": 2, "seq": 4}
    one = work.full(**sizes, layers=1)
    assert one["own"] == work.block_edges(**sizes, m=32, k=32)["own"]
    assert one["own"] < one["autodiff"]
    assert work.full(**sizes, layers=3)["autodiff"] == 3 * one["autodiff"]
    frozen, live = (work.attention_edges(**sizes, m=9, k=7, frozen=held) for held in (True, False))
    assert frozen["own"] < live["own"]
    assert frozen["autodiff"] < live["autodiff"]


def test_sides_are_made_from_the_same_arrays():
    """The numpy sublayer that decides which latents are on is the model's own."""
    problems, ours = load("_problems"), load("_ours")
    blocks = problems.make_blocks(d_model=16, heads=2, seq=5)
    site = jaxcirc.Site.parse("blocks.0.hook_attn_out")
    _, cache = jaxcirc.run(ours.make_model(blocks), jnp.asarray(blocks.tokens), record=[site])
    got = problems.attention(blocks.weights[0], blocks.resid, blocks.heads)
    assert np.abs(got).max() > 0.1
    np.testing.assert_allclose(got, np.asarray(cache[site]), atol=1e-5)
    dictionary = problems.make_dictionary(got, d_sae=40, active=3, seed=0)
    assert len(dictionary.latents) == 15


def test_edges_of_a_circuit_have_their_rows_and_columns():
    """The table is what the edges are, and nothing that is not in it is let through."""
    circuits, ours, rows = load("_circuits"), load("_ours_circuits"), load("rows._sparse_circuits")
    circuit = rows.make_circuit(rows.KEPT["quick"], **rows.QUICK)
    assert len(circuit.coders) == 7
    assert [len(wire.held) for wire in circuit.wires[:6]] == [0, 1, 0, 2, 1, 0]
    coo = {(str(s), str(t)): edges for (s, t), edges in ours.edges(circuit)().coo.items()}
    table = circuits.as_table(circuit, coo)
    assert table.shape == (len(circuit.rows.wire), circuit.width)
    assert np.isclose(np.abs(table).sum(), sum(np.abs(values).sum() for _, _, values in coo.values()))
    pair = circuit.wires[0].source, circuit.wires[0].target
    targets, sources, values = coo[pair]
    off = np.argwhere(circuit.effects[pair[1]] == 0)[:1]
    with pytest.raises(ValueError, match="have ends that are not among the circuit's nodes"):
        circuits.as_table(circuit, {**coo, pair: (np.r_[targets, off], np.r_[sources, sources[:1]], np.r_[values, 1])})
    with pytest.raises(ValueError, match="edges go between other sites"):
        circuits.as_table(circuit, {pair: coo[pair]})


def test_curves_of_agreement_as_a_table_and_a_picture(tmp_path):
    agreement = load("agreement")
    numbers = {"low": 0.1, "high": 0.9, "completeness": 0.05, "random": 0.0, "start_layer": 0, "threshold": 0.0}
    shares = {"share_of_nodes": 0.5, "share_of_edges": 0.25}
    rows = [
        {"kind": kind, "level": level, "nodes": size if level == "nodes" else 9, "edges": 7 * size, **numbers, **shares}
        | {"faithfulness": size / 10}
        for kind in ("simple", "rc")
        for level in ("nodes", "edges")
        for size in (9, 3)
    ]
    table = agreement.table(rows)
    assert "| rc | nodes | 0 | 0 | 9 (50.0%) | 63 (25.0%) | 0.900 (0.100 to 0.900) | 0.050 | 0.000 |" in table
    figure = agreement.draw(rows, tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 1000
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{kind}, by {level}, from layer 0" for kind in ("simple", "rc") for level in ("nodes", "edges")]
    for axes, what, sizes in zip(figure.axes, ("nodes", "edges") * 2, ([9, 3], [63, 21]) * 2, strict=True):
        assert axes.get_xlabel() == f"{what} kept\nband: 95 % interval over prompts"
        assert axes.get_ylabel() == "share of the metric recovered"
        line = next(line for line in axes.get_lines() if line.get_label() == "faithfulness")
        assert [data.tolist() for data in line.get_data()] == [sizes, [0.9, 0.3]]
    with pytest.raises(ValueError, match="expected at least one table of"):
        jaxcirc.draw_curves({}, tmp_path / "none.svg")


def test_a_run_that_is_stopped_keeps_the_rows_that_it_has(results, tmp_path, monkeypatch):
    command, asked = load("__main__"), []

    def measure(name, row, settings, progress):
        asked.append(settings)
        if len(asked) > 1:
            raise KeyboardInterrupt
        return copy.deepcopy(results["rows"][0])

    monkeypatch.setattr(command, "measure", measure)
    (tmp_path / "jacobians.json").write_text("of a run before")
    given = ["--rows", "attention-block", "block", "--without", "memory", "torch.compile"]
    assert main(["bench", "--quick", *given, "--out", str(tmp_path)]) == 130
    assert [(settings.memory, settings.compiled) for settings in asked] == [(False, False)] * 2
    (row,) = report.read(tmp_path / "jacobians.part.json")["rows"]
    assert row["name"] == "attention-block"
    assert (tmp_path / "jacobians.json").read_text() == "of a run before"
    monkeypatch.setattr(command, "measure", lambda *given: copy.deepcopy(results["rows"][0]))
    assert main(["bench", "--quick", *given, "--out", str(tmp_path)]) == 0
    assert len(report.read(tmp_path / "jacobians.json")["rows"]) == 2
    assert not list(tmp_path.glob("*.part.*"))


def test_precisions_are_compared_with_float64(tmp_path, monkeypatch, capsys):
    precisions = load("precisions")
    monkeypatch.setattr(precisions, "matmul_rate", lambda: 1e9)
    monkeypatch.setattr(precisions, "copy_rate", lambda: 1e9)
    given = ["--lengths", "8", "--width", "64", "--items", "12", "10", "--repeats", "1"]
    assert precisions.main([*given, "--out", str(tmp_path)]) == 0
    found = report.read(tmp_path / "precisions.json")
    assert [row["precision"] for row in found["edges"]] == ["highest", "tensorfloat32", "bfloat16"]
    assert all(0 < row["error"] < 1e-5 for row in [*found["edges"], *found["products"]])  # a CPU's are float32's
    assert "| 8 | highest | 1 | " in capsys.readouterr().out
    assert (tmp_path / "precisions.md").exists()
