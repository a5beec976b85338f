"""How much each part of a circuit is needed: what the circuit carries without it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jaxtyping import Array, Bool, Int

from .._checks import check_count
from .._metrics import Metric
from .._sites import Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ._ablations import AbstractAblation, MeanAblation
from ._batches import Progress
from ._circuit import Circuit
from ._evaluate import evaluation
from ._evaluation import Evaluation
from ._trial import RUNS, trial_of


if TYPE_CHECKING:
    import pandas as pd


def minimality(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    *,
    level: str = "nodes",
    most: int = 50,
    ablation: AbstractAblation = MeanAblation(),
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

    >>> prompts = jc.data.subject_verb(tokenizer, 8, kind="rc", seed=0)
    >>> arguments = (prompts.clean, prompts.corrupt, prompts.metric())
    >>> circuit = jc.discover(model, saes, *arguments, node_threshold=0.3, edge_threshold=0.1)
    >>> jc.minimality(circuit, model, saes, *arguments, most=3).columns.tolist()
    ['node', 'effect', 'without', 'lost']
    """
    import pandas as pd

    check_count("minimality: most", "parts to try", most)
    trial = trial_of(
        "minimality",
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
    whole = trial.runs(circuit, RUNS)
    faithfulness = evaluation(trial, circuit, whole).faithfulness
    parts = list(_parts(circuit, level, most))
    rows = []
    for i, (row, rest) in enumerate(parts):
        report(i, len(parts), "minimality")
        without = Evaluation({**whole, **trial.runs(rest, ("circuit",))}, {}).faithfulness
        rows.append({**row, "without": without, "lost": faithfulness - without})
    report(len(parts), len(parts), "minimality")
    return pd.DataFrame(rows).sort_values("lost", ascending=False, ignore_index=True)


def _parts(circuit: Circuit, level: str, most: int) -> Iterator[tuple[dict, Circuit]]:
    """The strongest parts, and the circuit without each."""
    if level == "nodes":
        for row in circuit.node_rows()[:most]:
            names = circuit.nodes["node"]
            yield {"node": row.node, "effect": row.effect}, circuit.subgraph(names[names != row.node])
        return
    table = circuit.edges
    for row in circuit.edge_rows()[:most]:
        rest = table[(table["source"] != row.source) | (table["target"] != row.target)].reset_index(drop=True)
        yield row._asdict(), dataclasses.replace(circuit, edges=rest)
