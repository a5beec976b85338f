"""How much of a behaviour ever smaller parts of a circuit carry, and how much as many nodes or edges drawn at random."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_seed, check_thresholds
from .._typing import Progress
from ._circuit import Circuit
from ._evaluation import Evaluation, evaluation
from ._runs import Runs


if TYPE_CHECKING:
    import pandas as pd


def recovered(
    circuit: Circuit, runs: Runs, thresholds: Sequence[float] | None, seed: int, progress: Progress | None
) -> "pd.DataFrame":
    """Evaluates a circuit at one threshold after another, each next to a random circuit of the same size: a row each."""
    import pandas as pd

    given = None if thresholds is None else check_thresholds(f"{runs.verb}: thresholds", thresholds)
    check_seed(f"{runs.verb}: seed", seed)
    by_nodes = runs.level == "nodes"
    name, column = (
        ("node_threshold", circuit.nodes["effect"]) if by_nodes else ("edge_threshold", circuit.edges["weight"])
    )
    size = np.sort(np.abs(column.to_numpy()))[::-1]
    if given is None:
        halves = [len(size) >> i for i in range(12) if len(size) >> i]
        given = [0.0 if count == len(size) else float(size[count]) for count in halves]
    report = progress or (lambda done, of, stage: None)
    bounds = runs.metrics(circuit, ("full", "empty"))
    rows, rng = [], np.random.default_rng(seed)
    for i, threshold in enumerate(given):
        report(i, len(given), "curve")
        part = circuit.above(**{name: threshold})
        of_part = evaluation(part, runs, {**bounds, **runs.metrics(part, ("circuit", "complement"))})
        random = runs.metrics(_random(circuit, part, runs.level, rng), ("circuit",))
        row = {"threshold": threshold, "nodes": len(part.nodes), "edges": len(part.edges)}
        low, high = of_part.interval()
        row |= {"faithfulness": of_part.faithfulness, "low": low, "high": high, "completeness": of_part.completeness}
        rows.append({**row, "random": Evaluation({**bounds, **random}, {}).faithfulness})
    report(len(given), len(given), "curve")
    return pd.DataFrame(rows)


def _random(pool: Circuit, like: Circuit, level: str, rng: np.random.Generator) -> Circuit:
    """Draws as many nodes at each site, or edges between each two sites, as `like` has, from those of `pool`."""
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
