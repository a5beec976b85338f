"""How much of a behaviour ever smaller parts of a circuit carry, and how much as many nodes or edges drawn at random."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Bool, Int

from .._checks import check_seed, check_thresholds
from .._metrics import Metric
from .._sites import Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, MeanAblation
from ._batches import Progress
from ._circuit import Circuit
from ._evaluate import evaluation
from ._evaluation import Evaluation
from ._trial import trial_of


if TYPE_CHECKING:
    import pandas as pd


def recovery_curve(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    thresholds: Sequence[float] | None = None,
    level: str = "nodes",
    ablation: AbstractAblation = MeanAblation(),
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
    import pandas as pd

    given = None if thresholds is None else check_thresholds("recovery_curve: thresholds", thresholds)
    check_seed("recovery_curve: seed", seed)
    trial = trial_of(
        "recovery_curve",
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
    by_nodes = level == "nodes"
    name, column = (
        ("node_threshold", circuit.nodes["effect"]) if by_nodes else ("edge_threshold", circuit.edges["weight"])
    )
    size = np.sort(np.abs(column.to_numpy()))[::-1]
    if given is None:
        halves = [len(size) >> i for i in range(12) if len(size) >> i]
        given = [0.0 if count == len(size) else float(size[count]) for count in halves]
    report = progress or (lambda done, of, stage: None)
    bounds = trial.runs(circuit, ("full", "empty"))
    rows, rng = [], np.random.default_rng(seed)
    for i, threshold in enumerate(given):
        report(i, len(given), "curve")
        part = circuit.above(**{name: threshold})
        found = evaluation(trial, part, {**bounds, **trial.runs(part, ("circuit", "complement"))})
        random = trial.runs(_random(circuit, part, level, rng), ("circuit",))
        row = {"threshold": threshold, "nodes": len(part.nodes), "edges": len(part.edges)}
        low, high = found.interval()
        row |= {"faithfulness": found.faithfulness, "low": low, "high": high, "completeness": found.completeness}
        rows.append({**row, "random": Evaluation({**bounds, **random}, {}).faithfulness})
    report(len(given), len(given), "curve")
    return pd.DataFrame(rows)


def _random(pool: Circuit, like: Circuit, level: str, rng: np.random.Generator) -> Circuit:
    """As many nodes at each site, or edges between each two sites, as `like` has, drawn from those of `pool`."""
    if level == "nodes":
        count = like.nodes["site"].value_counts()
        chosen = pool.nodes.groupby("site")["node"].apply(
            lambda names: list(rng.permutation(names.to_numpy())[: count.get(names.name, 0)])
        )
        return pool.subgraph(name for names in chosen for name in names)
    site = dict(zip(pool.nodes["node"], pool.nodes["site"], strict=True))
    pairs = lambda circuit: (
        circuit.edges["source"].map(site) + " " + circuit.edges["target"].map(lambda end: site.get(end, end))
    )
    count = pairs(like).value_counts()
    chosen = [
        index
        for pair, group in pool.edges.groupby(pairs(pool))
        for index in rng.permutation(group.index.to_numpy())[: count.get(pair, 0)]
    ]
    edges = pool.edges.loc[sorted(chosen)].reset_index(drop=True)
    return Circuit(pool.nodes, edges, pool.meta)
