"""The short ways: what is asked of a circuit once. Who asks several things of the same prompts makes a `Trial`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Array, Bool, Int

from .._metrics import Metric
from .._typing import Progress
from ..components import AbstractAblation, Mean
from ..models import Transformer
from ..saes import Saes
from ._circuit import Circuit
from ._evaluation import Evaluation
from ._trial import Trial


if TYPE_CHECKING:
    import pandas as pd


def evaluate(
    circuit: Circuit,
    model: Transformer,
    saes: Saes,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    ablation: AbstractAblation = Mean(),
    level: str = "nodes",
    start_layer: int = 0,
    errors: str = "default",
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Runs the circuit without the rest of the model, and the rest without the circuit.

    **Arguments:** as of `jc.circuits.Trial`, which says what `level="nodes"` and `level="edges"` are; `progress(done, of, stage)` is called
    on the way.

    **Returns:** `Evaluation`.

    **Raises:** `ValueError` as `jc.circuits.Trial`; for prompts whose positions do not align where values are taken from others; if
    ablating everything changes nothing.

    **Reference:** Marks et al. 2024, arXiv 2403.19647, §3.3 and appendix; means there are over the batch and for each position, as here.
    Edges are not evaluated there.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.02, edge_threshold=0.0005)
    >>> found = jc.evaluate(circuit, model, saes, *arguments)
    >>> 0.5 < found.faithfulness < 1.5
    True
    """
    trial = Trial(
        circuit,
        model,
        saes,
        clean,
        corrupt,
        metric,
        level=level,
        ablation=ablation,
        start_layer=start_layer,
        errors=errors,
        batch_size=batch_size,
        mask=mask,
        verb="evaluate",
    )
    return trial.evaluate(progress=progress)


def recovery_curve(
    circuit: Circuit,
    model: Transformer,
    saes: Saes,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    thresholds: Sequence[float] | None = None,
    level: str = "nodes",
    ablation: AbstractAblation = Mean(),
    start_layer: int = 0,
    errors: str = "default",
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Evaluates the circuit at one threshold after another, each next to a random circuit of the same size.

    **Arguments:**

    - `thresholds`: of nodes for `level="nodes"`, of edges for `level="edges"`; by default those that keep all, a half, a quarter and so
      on, of the circuit's nodes or edges.
    - `seed`: of the random circuits: as many nodes at each site, or edges between each two sites, drawn from this circuit's. So find
      it with low thresholds.
    - the rest as in `jc.evaluate`.

    **Returns:** a data frame, one row a threshold: `threshold`, `nodes`, `edges`, `faithfulness` with its interval `low` to `high`,
    `completeness`, and the `random` circuit's faithfulness.

    **Raises:** `ValueError` as `jc.evaluate`; for an empty list of thresholds, or one that is negative or NaN.
    """
    trial = Trial(
        circuit,
        model,
        saes,
        clean,
        corrupt,
        metric,
        level=level,
        ablation=ablation,
        start_layer=start_layer,
        errors=errors,
        batch_size=batch_size,
        mask=mask,
        verb="recovery_curve",
    )
    return trial.curve(thresholds=thresholds, seed=seed, progress=progress)


def minimality(
    circuit: Circuit,
    model: Transformer,
    saes: Saes,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    level: str = "nodes",
    most: int = 50,
    ablation: AbstractAblation = Mean(),
    start_layer: int = 0,
    errors: str = "default",
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Takes the strongest nodes, or edges, out of the circuit one by one, and evaluates what is left.

    A part that is lost without loss is not needed, or another does the same; a negative loss says that it works against the rest.

    **Arguments:** - `level`: `"nodes"` or `"edges"`. - `most`: how many of the strongest are tried, a run of the circuit for each. - the
    rest as in `jc.evaluate`.

    **Returns:** a data frame, the largest loss first: `node` and its `effect`, or `source`, `target` and their edge's `weight`; `without`,
    the faithfulness of the circuit without it; `lost`, how much less that is than the whole circuit's.

    **Raises:** `ValueError` as `jc.evaluate`.

    **Reference:** Wang et al. 2022, "Interpretability in the Wild", arXiv 2211.00593, §4.3, for sets of one part.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.2, edge_threshold=0.05)
    >>> jc.minimality(circuit, model, saes, *arguments, most=3).columns.tolist()
    ['node', 'effect', 'without', 'lost']
    """
    trial = Trial(
        circuit,
        model,
        saes,
        clean,
        corrupt,
        metric,
        level=level,
        ablation=ablation,
        start_layer=start_layer,
        errors=errors,
        batch_size=batch_size,
        mask=mask,
        verb="minimality",
    )
    return trial.minimality(most=most, progress=progress)


def prune(
    circuit: Circuit,
    model: Transformer,
    saes: Saes,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    faithfulness: float = 0.8,
    level: str = "edges",
    ablation: AbstractAblation = Mean(),
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
    `pruned` how that was chosen: what was asked for and `reached`, with its confidence interval, on how many prompts, and `from` which
    circuit.

    **Raises:** `ValueError` as `jc.evaluate`; if the whole circuit does not reach as much, with what it does reach.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> arguments = (model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    >>> wide = jc.discover(*arguments, node_threshold=0.02, edge_threshold=None)
    >>> small = jc.prune(wide, *arguments, faithfulness=0.5, level="nodes")
    >>> len(small.nodes) < len(wide.nodes), small.meta.pruned["reached"] >= 0.5
    (True, True)
    """
    trial = Trial(
        circuit,
        model,
        saes,
        clean,
        corrupt,
        metric,
        level=level,
        ablation=ablation,
        start_layer=start_layer,
        errors=errors,
        batch_size=batch_size,
        mask=mask,
        verb="prune",
    )
    return trial.prune(faithfulness=faithfulness, progress=progress)


def steer(
    circuit: Circuit,
    model: Transformer,
    saes: Saes,
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    nodes: Iterable[str],
    *,
    strengths: Sequence[float] = (1.0,),
    batch_size: int | None = None,
    mask: Bool[Array, "batch seq"] | None = None,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    r"""Moves nodes, each by itself and then all together, and compares the change of the metric with what the circuit's edges predict.

    At strength $\alpha$ a node moves by $\alpha (a_{corrupt} - a_{clean})$ on every prompt: 1 is activation patching, or with the zero
    baseline ablation, 2 goes as far again, -1 the other way. Everything downstream is computed from there. The prediction is $\alpha$ times
    the sum of the circuit's edges out of the node, to the metric and to its nodes; together, of the edges out of all of them.

    **Arguments:**

    - `circuit`: found with the same baseline: with corrupt prompts, or without.
    - `clean`, `corrupt`, `metric`, `mask`, `batch_size`: as in `jc.discover`. On the prompts of the circuit the prediction is of these
      prompts; on others it is a harder test.
    - `nodes`: names of nodes of the circuit.
    - `strengths`: one run for each of them and each node.

    **Returns:** a data frame, one row for each node and strength, and for `"all"`: `node`, `strength`, `effect` (the node's own times
    strength), `predicted` by the edges, `measured`; all three are changes of the metric, mean over prompts.

    **Raises:** `ValueError` as `jc.evaluate`; for a node that the circuit does not have; for another baseline than the circuit's; for no
    strength at all, or one that is not finite.

    **Reference:** patching and ablation of single features as the check of their effects, Marks et al. 2024, arXiv 2403.19647, §3.

    >>> prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.2, edge_threshold=0.05)
    >>> strongest = [node.node for node in circuit.node_rows()[:2]]
    >>> table = jc.steer(circuit, model, saes, *arguments, strongest, strengths=[0.5, 1.0])
    >>> list(table.columns), len(table)
    (['node', 'strength', 'effect', 'predicted', 'measured'], 6)
    """
    trial = Trial(circuit, model, saes, clean, corrupt, metric, batch_size=batch_size, mask=mask, verb="steer")
    return trial.steer(nodes, strengths=strengths, progress=progress)
