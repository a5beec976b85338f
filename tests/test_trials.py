"""A trial gives what the short ways give, by one set of checks; ablations are one family; what is known of a circuit has names."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.circuits import CircuitMeta, Trial
from tests.helpers import assert_close, needs_x64
from tests.test_attribution import problem
from tests.test_evaluation import KINDS


pytestmark = needs_x64


@pytest.fixture(scope="module")
def arguments():
    return problem(batch=3, seq=4, kinds=KINDS)


@pytest.fixture(scope="module")
def circuit(arguments):
    return jc.discover(*arguments, node_threshold=0.05, edge_threshold=0.005, method=jc.Gradient())


@pytest.fixture(scope="module")
def trial(arguments, circuit):
    return Trial(circuit, *arguments)


def same(evaluation, other):
    for name, values in evaluation.per_prompt.items():
        assert_close(values, other.per_prompt[name])


def test_a_trial_is_the_short_ways(arguments, circuit, trial):
    same(trial.evaluate(), jc.evaluate(circuit, *arguments))
    assert trial.evaluate().as_dict() == jc.evaluate(circuit, *arguments).as_dict()
    thresholds, names = [0.0, 0.1], [row.node for row in circuit.node_rows()[:2]]
    for table, short in (
        (trial.curve(thresholds=thresholds), jc.recovery_curve(circuit, *arguments, thresholds=thresholds)),
        (trial.minimality(most=2), jc.minimality(circuit, *arguments, most=2)),
        (trial.steer(names), jc.steer(circuit, *arguments, names)),
    ):
        assert len(table) >= 2
        assert table.equals(short)
    part, short = trial.prune(faithfulness=0.5), jc.prune(circuit, *arguments, faithfulness=0.5, level="nodes")
    assert part.nodes.equals(short.nodes)
    assert part.meta == short.meta
    assert repr(trial) == f"Trial({circuit}, 3 prompts, by nodes)"


def test_a_trial_with_another_setting(arguments, circuit, trial):
    without = dataclasses.replace(trial, errors="remove")
    same(without.evaluate(), jc.evaluate(circuit, *arguments, errors="remove"))
    assert abs(without.evaluate().m_circuit - trial.evaluate().m_circuit) > 1e-4


@pytest.mark.usefixtures("untyped")
def test_a_trial_is_checked_before_anything_is_run(arguments, circuit, monkeypatch):
    def run(*_, **__):
        raise AssertionError("a prompt was run")

    monkeypatch.setattr("jaxcirc.circuits._trial.clean_run", run)
    monkeypatch.setattr("jaxcirc.circuits._runs.by_nodes", run)
    with pytest.raises(ValueError, match=r"^Trial: level must be 'nodes' or 'edges', got 'both'"):
        Trial(circuit, *arguments, level="both")
    with pytest.raises(TypeError, match=r"^Trial: circuit: expected a circuit"):
        Trial(None, *arguments)
    trial = Trial(circuit, *arguments)
    with pytest.raises(ValueError, match=r"^Trial: thresholds: expected at least one number"):
        trial.curve(thresholds=[])
    with pytest.raises(AssertionError, match="a prompt was run"):
        trial.evaluate()


def test_the_mean_is_taken_once(arguments, circuit, monkeypatch):
    from jaxcirc.circuits import _trial

    right, runs = _trial.clean_run, []
    monkeypatch.setattr(_trial, "clean_run", lambda *given: (runs.append(None), right(*given))[1])
    trial = Trial(circuit, *arguments)
    assert runs == []
    trial.evaluate()
    trial.minimality(most=1)
    assert len(runs) == 1


def test_ablations_are_one_family(arguments, circuit, trial):
    model, _, clean, corrupt, _ = arguments
    assert jc.MeanAblation is jc.Mean
    assert jc.ZeroAblation is jc.Zero
    assert jc.AbstractAblation is jc.AbstractValues
    same(dataclasses.replace(trial, ablation=jc.Mean(corrupt)).evaluate(), trial.evaluate())
    others = jc.Resample.rolled(corrupt)
    resampled = dataclasses.replace(trial, ablation=others, batch_size=2).evaluate()
    seeds = [dataclasses.replace(trial, ablation=jc.ResampleAblation(seed)).evaluate() for seed in range(4)]
    assert any(np.allclose(resampled.per_prompt["circuit"], each.per_prompt["circuit"]) for each in seeds)
    assert resampled.meta["ablation"] == {"name": "Resample"}
    assert resampled.meta["reference"] == "the ablation's own"
    assert seeds[1].meta["ablation"] == {"name": "ResampleAblation", "seed": 1}
    heads = [(0, 1), (1, 0)]
    assert_close(jc.ablate(model, clean, heads, jc.Mean()), jc.ablate(model, clean, heads, jc.Mean(clean)))
    shuffled = jc.ablate(model, clean, heads, jc.ResampleAblation(0))
    rolled = [jc.ablate(model, clean, heads, jc.Resample(jnp.roll(clean, by, 0))) for by in (1, 2)]
    assert any(np.allclose(shuffled, each) for each in rolled)
    assert not np.allclose(*rolled)


@pytest.mark.usefixtures("untyped")
def test_what_a_family_of_ablations_refuses(arguments, circuit):
    model, _, clean, corrupt, _ = arguments
    with pytest.raises(ValueError, match=r"Mean: mask is of tokens, and none were given\. Give Mean\(tokens, mask\)"):
        jc.Mean(mask=jnp.ones((3, 4), bool))
    with pytest.raises(ValueError, match=r"Mean: its tokens have shape \(3, 3\) and those that are run \(3, 4\)"):
        jc.evaluate(circuit, *arguments, ablation=jc.Mean(corrupt[:, :3]))
    with pytest.raises(ValueError, match=r"resample from have shape \(2, 4\) and those that are run \(3, 4\)"):
        jc.evaluate(circuit, *arguments, ablation=jc.Resample(corrupt[:2]))
    with pytest.raises(ValueError, match="ResampleAblation takes another prompt's values, and there is one prompt"):
        jc.ablate(model, clean[:1], [(0, 0)], jc.ResampleAblation())


def test_an_ablation_of_ones_own(arguments, circuit, trial):
    class HalfMean(jc.AbstractAblation):
        def values(self, receivers):
            whole = jc.Mean().values(receivers)
            return lambda rows: jax.tree.map(lambda x: x / 2, whole(rows))

    halved = dataclasses.replace(trial, ablation=HalfMean()).evaluate()
    assert halved.meta["ablation"] == {"name": "HalfMean"}
    assert abs(halved.m_empty - trial.evaluate().m_empty) > 1e-3


def test_what_is_known_of_a_circuit_has_names(circuit, tmp_path):
    meta = circuit.meta
    assert meta.prompts == meta["prompts"] == 3
    assert (meta.baseline, meta.bos, meta.edge_threshold) == ("corrupt prompts", None, 0.005)
    assert "bos" not in meta
    assert "pruned" not in meta
    noted = circuit.annotate(bos=True, title="A title", note="mine")
    assert (noted.meta.bos, noted.meta.title, noted.meta.extra) == (True, "A title", {"note": "mine"})
    assert noted.meta["note"] == "mine"
    assert {**noted.meta} == noted.meta.as_dict() == json.loads(json.dumps(noted.meta.as_dict()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        meta.title = "another"
    with pytest.raises(KeyError):
        meta["nothing"]
    noted.save(tmp_path / "saved")
    assert jc.Circuit.load(tmp_path / "saved").meta == noted.meta


def test_a_circuit_that_was_saved_before_its_meta_had_names(circuit, tmp_path):
    """The file is as it was: what is known, flat, with whatever else was noted."""
    circuit.save(tmp_path / "saved")
    before = {
        "format": "jaxcirc circuit",
        "version": 1,
        "model": "old",
        "certificate": None,
        "edge_threshold": None,
        "mine": [1],
    }
    (tmp_path / "saved" / "circuit.json").write_text(json.dumps(before), encoding="utf-8")
    meta = jc.Circuit.load(tmp_path / "saved").meta
    assert meta == CircuitMeta(model="old", extra={"mine": [1]})
    assert len(meta) == 2


def test_without_edges_their_threshold_and_certificate_are_none(arguments):
    alone = jc.discover(*arguments, node_threshold=0.05, edge_threshold=None, method=jc.Gradient())
    assert alone.meta["edge_threshold"] is alone.meta["certificate"] is None
    assert {"edge_threshold", "certificate"} <= set(alone.meta)
