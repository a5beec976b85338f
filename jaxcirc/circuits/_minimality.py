"""How much each part of a circuit is needed: what the circuit carries without it."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .._checks import check_count
from .._typing import Progress
from ._circuit import Circuit
from ._evaluation import Evaluation, evaluation
from ._runs import RUNS, Runs


if TYPE_CHECKING:
    import pandas as pd


def lost(circuit: Circuit, runs: Runs, most: int, progress: Progress | None) -> "pd.DataFrame":
    """Takes the strongest nodes or edges out of a circuit one by one, and evaluates what is left: a row each."""
    import pandas as pd

    check_count(f"{runs.verb}: most", "parts to try", most)
    report = progress or (lambda done, of, stage: None)
    whole = runs.metrics(circuit, RUNS)
    faithfulness = evaluation(circuit, runs, whole).faithfulness
    parts = list(_parts(circuit, runs.level, most))
    rows = []
    for i, (row, rest) in enumerate(parts):
        report(i, len(parts), "minimality")
        without = Evaluation({**whole, **runs.metrics(rest, ("circuit",))}, {}).faithfulness
        rows.append({**row, "without": without, "lost": faithfulness - without})
    report(len(parts), len(parts), "minimality")
    return pd.DataFrame(rows).sort_values("lost", ascending=False, ignore_index=True)


def _parts(circuit: Circuit, level: str, most: int) -> Iterator[tuple[dict, Circuit]]:
    """Yields the strongest nodes or edges, each with the circuit without it."""
    if level == "nodes":
        for row in circuit.node_rows()[:most]:
            names = circuit.nodes["node"]
            yield {"node": row.node, "effect": row.effect}, circuit.subgraph(names[names != row.node])
        return
    table = circuit.edges
    for row in circuit.edge_rows()[:most]:
        rest = table[(table["source"] != row.source) | (table["target"] != row.target)].reset_index(drop=True)
        yield row._asdict(), dataclasses.replace(circuit, edges=rest)
