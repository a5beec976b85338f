"""Checks of attribution graphs, drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_kind
from .._figures import COLOURS, dots, headline, labelled, legend, new_figure, saved, written
from .._words import counted


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = ("node", "strength", "target", "predicted", "measured")


def draw_graph_checks(
    checks: "pd.DataFrame", path: str | Path | None = None, *, title: str = "Attribution graph against interventions"
) -> "Figure":
    """Draws what the edges of an attribution graph predict against what the model does, a dot for each node that was moved and target,
    with the line on which both are equal.

    **Arguments:** - `checks`: the table of `jc.check_graph`. - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`. -
    `title`: what was held, for example.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for an empty table, or one without these columns; for more than four strengths; for another suffix.

    >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=50)
    >>> node = graph.nodes.index[graph.nodes["kind"] == "latent"][0]
    >>> figure = jc.draw_graph_checks(jc.check_graph(graph, model, None, [node]), "checks.svg")
    """
    import pandas as pd

    target = written("draw_graph_checks", path)
    check_kind("draw_graph_checks: checks", checks, pd.DataFrame, "the table of jc.check_graph")
    if missing := [column for column in COLUMNS if column not in checks]:
        raise ValueError(f"draw_graph_checks: the table has no column {missing[0]!r}. Give that of jc.check_graph.")
    if not len(checks):
        raise ValueError("draw_graph_checks: the table is empty. Move nodes that have targets behind them.")
    strengths = sorted(set(checks["strength"].tolist()))
    if len(strengths) > len(COLOURS):
        raise ValueError(
            f"draw_graph_checks: up to {len(COLOURS)} strengths have colours, got {len(strengths)}. Give some rows."
        )
    moved = counted(len(set(checks["node"].tolist())), "node")
    whole = headline(f"{title}; {moved} moved, {counted(len(checks), 'pair')}")
    figure, [axes] = new_figure(1, (5.6, 4.4), title=whole)
    for colour, strength, line in zip(COLOURS, strengths, [(1.0, 0.0), None, None, None], strict=False):
        some = checks["strength"].to_numpy() == strength
        x, y = (checks[column].to_numpy(float)[some] for column in ("predicted", "measured"))
        dots(axes, x, y, colour=colour, name=f"times {strength:g}", line=line)
    labelled(
        axes,
        label="change that the graph predicts",
        side="change that was measured",
        title=_agreement(checks["predicted"].to_numpy(float), checks["measured"].to_numpy(float)),
        note="of a target's pre-activation, or of a logit; dashed: both are equal",
    )
    legend(axes)
    return saved(figure, target)


def _agreement(predicted: np.ndarray, measured: np.ndarray) -> str:
    """How near predictions are to what was measured."""
    size = float(np.abs(measured).max())
    off = (
        f"largest difference {np.abs(predicted - measured).max() / size:.2g} of the largest change"
        if size
        else "nothing changes"
    )
    varies = len(measured) > 1 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return f"correlation {np.corrcoef(predicted, measured)[0, 1]:z.3f}; {off}" if varies else off
