"""Arguments that no answer can be had from, at the door of every verb of circuits: before any prompt is run."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from tests.helpers import needs_x64
from tests.test_attribution import problem
from tests.test_evaluation import circuit_of, some_nodes


pytestmark = [needs_x64, pytest.mark.usefixtures("untyped")]
CUTS = {"node_threshold": 0.1, "edge_threshold": 0.02}
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def arguments():
    return problem(batch=3, seq=4)


@pytest.fixture(scope="module")
def circuit(arguments):
    nodes = some_nodes(arguments, 0.2)
    names = circuit_of(arguments, nodes).nodes["node"]
    return circuit_of(arguments, nodes, [(names[0], "metric")])


@pytest.fixture
def asleep(monkeypatch):
    """No prompt can be run."""

    def run(*_, **__):
        raise AssertionError("a prompt was run")

    for name in (
        "_batches.ArrayBatches.__iter__",
        "_means.states",
        "_steer.clean_run",
        "_trial.clean_run",
        "_runs.clean_run",
    ):
        monkeypatch.setattr(f"jaxcirc.circuits.{name}", run)


VERBS = {
    "discover": lambda circuit, given, **more: jc.discover(*given, **{**CUTS, **more}),
    "discover_batches": lambda circuit, given, **more: jc.discover_batches(
        *given[:2],
        [jc.data.Prompts(*given[2:4], given[4].answer, given[4].foil, {"end": jnp.full(3, 3)})],
        **{**CUTS, **more},
    ),
    "evaluate": lambda circuit, given, **more: jc.evaluate(circuit, *given, **more),
    "recovery_curve": lambda circuit, given, **more: jc.recovery_curve(circuit, *given, **more),
    "minimality": lambda circuit, given, **more: jc.minimality(circuit, *given, **more),
    "prune": lambda circuit, given, **more: jc.prune(circuit, *given, **more),
    "steer": lambda circuit, given, **more: jc.steer(
        circuit, *given, **{"nodes": [circuit.node_rows()[0].node], **more}
    ),
}
TRIALS = ("evaluate", "recovery_curve", "minimality", "prune")
COUNT = "is how many .*, at least {}; got {}"
THRESHOLD = "is a size that others are compared with, 0 or more; got {!r}"

BAD = [
    *(
        (verb, name, value, THRESHOLD.format(value))
        for verb in ("discover", "discover_batches")
        for name in CUTS
        for value in (NAN, -0.1, "0.1", True)
    ),
    *(
        (verb, "batch_size", value, COUNT.format(1, value))
        for verb in ("discover", *TRIALS, "steer")
        for value in (0, -5, 1.5, NAN)
    ),
    *((verb, "start_layer", value, COUNT.format(0, value)) for verb in TRIALS for value in (-1, 0.5, NAN)),
    *((verb, "start_layer", 9, "start_layer is from 0 to 2, got 9") for verb in TRIALS),
    *((verb, "level", "both", "level must be 'nodes' or 'edges', got 'both'") for verb in TRIALS),
    *((verb, "errors", "drop", "errors must be 'default' or 'keep' or 'remove', got 'drop'") for verb in TRIALS),
    *((verb, "aggregate", "mean", "aggregate must be 'sum' or 'none'") for verb in ("discover", "discover_batches")),
    ("recovery_curve", "thresholds", [], "thresholds: expected at least one number, got an empty list"),
    *(("recovery_curve", "thresholds", [0.1, value], THRESHOLD.format(value)) for value in (NAN, -1.0)),
    ("recovery_curve", "seed", -1, "seed: expected a whole number from 0 on, got -1"),
    *(("minimality", "most", value, COUNT.format(1, value)) for value in (0, -5, NAN, 2.5)),
    *(
        ("prune", "faithfulness", value, f"faithfulness is a part of the .*, above 0 and up to 1; got {value}")
        for value in (0.0, -0.8, 1.5, NAN)
    ),
    ("steer", "strengths", [], "strengths: expected at least one number, got an empty list"),
    *(("steer", "strengths", [1.0, value], f"expected a finite number, got {value}") for value in (NAN, INF)),
    ("steer", "nodes", [], "no node was named"),
]


@pytest.mark.parametrize(("verb", "name", "value", "message"), BAD, ids=lambda x: str(x)[:30])
def test_every_verb_refuses_what_means_nothing(arguments, circuit, asleep, verb, name, value, message):
    with pytest.raises(ValueError, match=message) as told:
        VERBS[verb](circuit, arguments, **{name: value})
    assert str(told.value).startswith(f"{verb}: ")


@pytest.mark.parametrize("verb", ["recovery_curve", "minimality", "prune"])
def test_a_circuit_without_parts_is_refused(arguments, circuit, asleep, verb):
    for level, empty in (("nodes", circuit.subgraph([])), ("edges", circuit.above(edge_threshold=9.0))):
        with pytest.raises(ValueError, match=f"{verb}: the circuit has no {level}"):
            VERBS[verb](empty, arguments, level=level)


def test_one_name_for_a_list_of_names(arguments, circuit, asleep):
    name = circuit.node_rows()[0].node
    with pytest.raises(TypeError, match="steer: nodes: expected a list of names of nodes, got one"):
        jc.steer(circuit, *arguments, name)
    with pytest.raises(TypeError, match=r"Circuit\.subgraph: names: expected a list of names of nodes, got one"):
        circuit.subgraph(name)
    with pytest.raises(TypeError, match=r"steer: strengths: expected a list of numbers, got 1\.0"):
        jc.steer(circuit, *arguments, [name], strengths=1.0)
    with pytest.raises(TypeError, match=r"recovery_curve: thresholds: expected a list of numbers, got 0\.1"):
        jc.recovery_curve(circuit, *arguments, thresholds=0.1)


def test_what_a_circuit_is_asked_for(circuit, tmp_path):
    for name in CUTS:
        for value in (NAN, -1.0, "0.1"):
            for verb in (circuit.above, lambda **more: jc.Circuit.from_feature_circuits("nowhere.pt", **more)):
                with pytest.raises(ValueError, match=f"Circuit.*: {name} {THRESHOLD.format(value)}"):
                    verb(**{name: value})
    name = circuit.node_rows()[0].node
    for value in (0, -5, NAN, 1.5):
        with pytest.raises(ValueError, match=f"Circuit.paths: most {COUNT.format(1, value)}"):
            circuit.paths(name, most=value)
    for value in (-5, NAN, 1.5):
        for verb in ("to_figure", "to_attribution_graph", "to_graphviz"):
            given = [] if verb == "to_graphviz" else [tmp_path / "picture.svg"]
            with pytest.raises(ValueError, match=f"Circuit.{verb}: most_edges {COUNT.format(0, value)}"):
                getattr(circuit, verb)(*given, most_edges=value)
    assert not list(tmp_path.iterdir())


def test_what_ablation_is_asked_for(arguments):
    model, _, clean, corrupt, _ = arguments
    for value in (0, -5, NAN, 1.5):
        with pytest.raises(ValueError, match=f"ablate_each: tokens_at_once {COUNT.format(1, value)}"):
            jc.ablate_each(model, clean, [(0, 0)], jc.Zero(), tokens_at_once=value)
        with pytest.raises(ValueError, match=f"self_repair: tokens_at_once {COUNT.format(1, value)}"):
            jc.self_repair(model, clean, corrupt, tokens_at_once=value)
    for value in (-1, 0.5, NAN):
        with pytest.raises(ValueError, match=f"ResampleAblation: seed: expected a whole number from 0 on, got {value}"):
            jc.ResampleAblation(value)
    runs = {name: np.arange(3.0) * i for i, name in enumerate(("full", "circuit", "empty", "complement"))}
    found = jc.Evaluation(runs, {})
    with pytest.raises(ValueError, match=r"Evaluation\.interval: level is how often"):
        found.interval(level=NAN)


def test_numbers_of_numpy_and_jax_are_numbers(arguments, circuit):
    part = circuit.above(node_threshold=np.float32(0.5), edge_threshold=jnp.asarray(0.5))
    assert len(part.nodes) == len(circuit.nodes) > 0
    assert circuit.paths(circuit.node_rows()[0].node, most=np.int64(1)) is not None
