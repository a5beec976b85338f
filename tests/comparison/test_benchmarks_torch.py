"""The benchmarks' PyTorch side: every formulation equals ours, and one that does not is refused."""

import pytest

from jaxcirc.cli._bench import load


torch = pytest.importorskip("torch")
row_module, measure_module, timing = load("_row"), load("_measure"), load("_timing")
load("rows")
SETTINGS = measure_module.Settings("quick", repeats=1, precision="highest", memory=False, compiled=False, rate=1e9)
pytestmark = [
    pytest.mark.usefixtures("untyped"),  # as users run them: the suite's type checks would be timed too
    pytest.mark.filterwarnings(
        "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
    ),  # PyTorch uses it for forward mode
]


def measured(name: str) -> dict:
    return measure_module.measure(name, row_module.make_row(name, "quick"), SETTINGS, lambda said: None)


@pytest.mark.parametrize("name", ["attention-block-frozen", "mlp-block", "full-one-block"])
def test_every_formulation_is_equal(name):
    rival, *_ = measured(name)["rivals"]
    assert len(rival["tried"]) > 1
    assert all(0 < numbers["error"] < 1e-5 for numbers in rival["tried"].values())
    assert rival["seconds"]["median"] == pytest.approx(rival["scale"] * rival["measured_seconds"]["median"])
    assert rival["ratio"]["min"] > 0


def test_self_repair_is_that_of_two_runs_a_head_and_of_runs_from_its_layer():
    whole, later = measured("self-repair")["rivals"]
    assert list(later["tried"]) == ["head by head", "2 heads at once", "4 heads at once"]
    for rival in (whole, later):
        assert all(0 < numbers["error"] < 1e-5 for numbers in rival["tried"].values())
        assert rival["ratio"]["min"] > 0
    assert (whole["timed"], whole["all"], later["timed"]) == (4, 8, 8)


def test_path_patching_is_that_of_a_run_a_sender_and_of_runs_from_the_first_receiver():
    whole, later = measured("path-patching")["rivals"]
    assert list(later["tried"]) == ["1 at once", "16 at once"]
    for rival in (whole, later):
        assert all(0 < numbers["error"] < 1e-5 for numbers in rival["tried"].values())
    assert (whole["timed"], whole["all"], later["timed"]) == (4, 6, 6)


def test_a_mistake_in_pytorch_is_refused(monkeypatch):
    peer = load("peers._blocks")
    monkeypatch.setattr(peer, "EPS", 0.1)
    with pytest.raises(timing.Unequal, match="ours against PyTorch autodiff, loop: relative error"):
        measured("mlp-block")


def test_a_formulation_that_cannot_be_compiled_is_left_out_with_the_reason(monkeypatch):
    def compile(*_, **__):
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", compile)
    row = row_module.make_row("mlp-block", "quick")
    found = measure_module.measure("mlp-block", row, SETTINGS._replace(compiled=True), lambda said: None)
    plain, compiled, *_ = found["rivals"]
    assert plain["ratio"]["min"] > 0
    assert compiled["skipped"] == "torch.compile failed: RuntimeError: no C++ compiler"
