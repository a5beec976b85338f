"""The part of a circuit that carries as much of a behaviour as is asked for."""

import math
from collections.abc import Callable

import numpy as np

from .._checks import check_share
from .._typing import Progress
from ._circuit import Circuit
from ._evaluation import check_explained, Evaluation
from ._rows import METRIC
from ._runs import Runs


TOLERANCE = 0.02  # of the number of parts, at which the search ends


def pruned(circuit: Circuit, runs: Runs, faithfulness: float, progress: Progress | None) -> Circuit:
    """Raises the threshold of nodes or edges while what is left reaches `faithfulness`."""
    check_share(f"{runs.verb}: faithfulness", "change of the metric", faithfulness)
    report, level = progress or (lambda done, of, stage: None), runs.level
    bounds = runs.metrics(circuit, ("full", "empty"))
    check_explained(runs.verb, bounds)
    measured = lambda part: Evaluation({**bounds, **runs.metrics(part, ("circuit",))}, {})

    whole = measured(circuit)
    if whole.faithfulness < faithfulness:
        raise ValueError(
            f"{runs.verb}: the whole circuit, {len(circuit.nodes)} nodes and {len(circuit.edges)} edges, reaches a faithfulness of "
            f"{whole.faithfulness:.3f} by {level} on these {runs.batches.n} prompts, and {faithfulness:g} was asked for. Find it with "
            f"lower thresholds than {_thresholds(circuit)}, or ask for less."
        )
    sizes = np.sort(np.abs(circuit.nodes["effect"] if level == "nodes" else circuit.edges["weight"]))[::-1]
    cut = lambda count: float(sizes[count]) if count < len(sizes) else 0.0
    tried = {len(sizes): (circuit, whole)}

    def enough(count: int) -> bool:
        part = _above(circuit, level, cut(count))
        tried[count] = part, measured(part)
        return tried[count][1].faithfulness >= faithfulness

    count = _smallest(len(sizes), enough, report)
    part, evaluation = tried[count]
    return part.annotate(**_chosen(circuit, runs, cut(count), faithfulness, evaluation))


def _smallest(most: int, enough: Callable[[int], bool], report: Progress) -> int:
    """Finds a number that is enough while one smaller by the tolerance is not, by bisection of its logarithm; `most` is enough."""
    steps = 1 + math.ceil(math.log2(1 + math.log(most) / TOLERANCE))
    low, high, done = 0, most, 0
    while high - low > max(1, TOLERANCE * high):
        report(min(done, steps - 1), steps, "prune")
        middle = min(max(round(math.sqrt(max(low, 1) * high)), low + 1), high - 1)
        low, high = (low, middle) if enough(middle) else (middle, high)
        done += 1
    report(steps, steps, "prune")
    return high


def _above(circuit: Circuit, level: str, threshold: float) -> Circuit:
    """Keeps what is above the threshold; of edges also only the nodes that these touch, as others carry nothing."""
    if level == "nodes":
        return circuit.above(node_threshold=threshold)
    part = circuit.above(edge_threshold=threshold)
    return part.subgraph({*part.edges["source"], *part.edges["target"]} - {METRIC})


def _chosen(circuit: Circuit, runs: Runs, threshold: float, faithfulness: float, reached: Evaluation) -> dict:
    """Says in plain JSON how the part was chosen: what is added to the circuit's `meta`."""
    wide = {"node_threshold": circuit.meta.node_threshold, "edge_threshold": circuit.meta.edge_threshold}
    name = "node_threshold" if runs.level == "nodes" else "edge_threshold"
    how = {
        **runs.settings,
        "faithfulness": faithfulness,
        "reached": reached.faithfulness,
        "interval": reached.listed_interval("faithfulness"),
        "from": {**wide, "nodes": len(circuit.nodes), "edges": len(circuit.edges)},
    }
    return {name: max(threshold, wide[name] or 0.0), "pruned": how}


def _thresholds(circuit: Circuit) -> str:
    """Words the thresholds that the circuit was found with."""
    thresholds = {"node_threshold": circuit.meta.node_threshold, "edge_threshold": circuit.meta.edge_threshold}
    known = [f"{name}={value:g}" for name, value in thresholds.items() if value is not None]
    return " and ".join(known) or "it was found with"
