"""The part of a circuit that carries as much of a behaviour as is asked for."""

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Array, Bool, Int

from .._checks import check_share
from .._metrics import Metric
from .._sites import Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ..view import METRIC
from ._ablations import AbstractAblation, MeanAblation
from ._batches import Progress
from ._circuit import Circuit
from ._evaluate import check_explained
from ._evaluation import Evaluation
from ._trial import trial_of


TOLERANCE = 0.02  # of the number of parts, at which the search ends


def prune(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    faithfulness: float = 0.8,
    level: str = "edges",
    ablation: AbstractAblation = MeanAblation(),
    start_layer: int = 0,
    errors: str = "default",
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> Circuit:
    r"""Raises a threshold until what is left of a circuit carries just as much of the behaviour as is asked for.

    With `level="edges"` it is the threshold of edges, and nodes that no edge is left of go too, as they carry nothing; with
    `level="nodes"` that of nodes. The search halves the logarithm of the number of parts, with one run of a part of the circuit for each
    step, and ends when the number is known to 2 %. Faithfulness need not grow with the circuit, so that a smaller one may reach as much;
    the one that is returned has been measured to.

    **Arguments:**

    - `circuit`: a wide one, found with low thresholds: it is found once, and only gets smaller here.
    - `clean`, `corrupt`, `metric`, `mask`: as in `jc.discover`; the prompts on which it is measured. On those that the circuit was found on
      the number flatters; keep others for `jc.evaluate`.
    - `faithfulness`: what the circuit alone is to recover of the metric, as in `jc.evaluate`, above 0 and up to 1.
    - `level`: what carries, `"edges"` or `"nodes"`, as in `jc.evaluate`.
    - the rest as in `jc.evaluate`.

    **Returns:** the part of the circuit. Its `meta` has the raised threshold under `node_threshold` or `edge_threshold`, and under
    `"pruned"` how that was chosen: what was asked for and `reached`, with its confidence interval, on how many prompts, and `from` which
    circuit.

    **Raises:** `ValueError` as `jc.evaluate`; if the whole circuit does not reach as much, with what it does reach.

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> arguments = (model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    >>> wide = jc.discover(*arguments, node_threshold=0.02, edge_threshold=None)
    >>> small = jc.prune(wide, *arguments, faithfulness=0.5, level="nodes")
    >>> len(small.nodes) < len(wide.nodes), small.meta["pruned"]["reached"] >= 0.5
    (True, True)
    """
    check_share("prune: faithfulness", "change of the metric", faithfulness)
    trial = trial_of(
        "prune",
        circuit,
        model,
        saes,
        clean,
        corrupt,
        metric,
        mask,
        ablation,
        level,
        start_layer,
        errors,
        batch_size,
        of_parts=True,
    )
    report = progress or (lambda done, of, stage: None)
    bounds = trial.runs(circuit, ("full", "empty"))
    check_explained(trial, bounds)
    measured = lambda part: Evaluation({**bounds, **trial.runs(part, ("circuit",))}, {})

    whole = measured(circuit)
    if whole.faithfulness < faithfulness:
        raise ValueError(
            f"prune: the whole circuit, {len(circuit.nodes)} nodes and {len(circuit.edges)} edges, reaches a faithfulness of "
            f"{whole.faithfulness:.3f} by {level} on these {trial.batches.n} prompts, and {faithfulness:g} was asked for. Find it with "
            f"lower thresholds than {_thresholds(circuit)}, or ask for less."
        )
    sizes = np.sort(np.abs(circuit.nodes["effect"] if level == "nodes" else circuit.edges["weight"]))[::-1]
    cut = lambda count: float(sizes[count]) if count < len(sizes) else 0.0
    found = {len(sizes): (circuit, whole)}

    def enough(count: int) -> bool:
        part = _above(circuit, level, cut(count))
        found[count] = part, measured(part)
        return found[count][1].faithfulness >= faithfulness

    count = _smallest(len(sizes), enough, report)
    part, evaluation = found[count]
    return part.annotate(**_chosen(circuit, trial.settings, level, cut(count), faithfulness, evaluation))


def _smallest(most: int, enough: Callable[[int], bool], report: Progress) -> int:
    """A number that is enough while one smaller by the tolerance is not, by bisection of its logarithm; `most` is enough."""
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
    if level == "nodes":
        return circuit.above(node_threshold=threshold)
    part = circuit.above(edge_threshold=threshold)
    return part.subgraph({*part.edges["source"], *part.edges["target"]} - {METRIC})


def _chosen(
    circuit: Circuit, settings: dict, level: str, threshold: float, faithfulness: float, found: Evaluation
) -> dict:
    """What is added to the circuit's `meta`."""
    name = "node_threshold" if level == "nodes" else "edge_threshold"
    raised = max(threshold, circuit.meta.get(name) or 0.0)
    wide = {name: circuit.meta.get(name) for name in ("node_threshold", "edge_threshold")}
    pruned = {
        **settings,
        "faithfulness": faithfulness,
        "reached": found.faithfulness,
        "interval": found.listed_interval("faithfulness"),
        "from": {**wide, "nodes": len(circuit.nodes), "edges": len(circuit.edges)},
    }
    return {name: raised, "pruned": pruned}


def _thresholds(circuit: Circuit) -> str:
    names = ("node_threshold", "edge_threshold")
    known = [f"{name}={circuit.meta[name]:g}" for name in names if circuit.meta.get(name) is not None]
    return " and ".join(known) or "it was found with"
