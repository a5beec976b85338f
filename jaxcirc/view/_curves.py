"""Recovery curves, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_kind
from .._figures import COLOURS, GREY, headline, labelled, legend, log_axis, new_figure, saved, series, written


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("nodes", "edges", "faithfulness", "low", "high", "completeness", "random")


def draw_curves(
    curves: "Mapping[str, pd.DataFrame]", path: str | Path | None = None, *, metric: str | None = None
) -> "Figure":
    """Draws recovery curves, a panel for each, under its name: how much of the metric is recovered by how many nodes or edges, with the
    interval of the faithfulness as a band.

    **Arguments:** - `curves`: tables of `jc.recovery_curve`, for example `{"by nodes": …, "by edges": …}`. - `path`: also writes the
    figure, by its suffix `.svg`, `.pdf` or `.png`. - `metric`: what it is called, for the title.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` if there is none, one is empty, keeps nothing, or has other columns; for another suffix.
    """
    target = written("draw_curves", path)
    check_kind("draw_curves: curves", curves, Mapping, "tables by name, {'by nodes': jc.recovery_curve(…)}")
    if not curves or any(len(table) == 0 for table in curves.values()):
        raise ValueError("draw_curves: expected at least one table of jc.recovery_curve, none of them empty.")
    for name, table in curves.items():
        if missing := [column for column in COLUMNS if column not in table]:
            raise ValueError(
                f"draw_curves: the table {name!r} has no column {missing[0]!r}. Give that of jc.recovery_curve."
            )
        if not (table[_kept(table)].to_numpy() > 0).any():
            raise ValueError(f"draw_curves: the circuits of {name!r} keep nothing. Give lower thresholds.")
    title = headline("Recovery of the metric against the size of the circuit", metric=metric)
    figure, axes = new_figure(len(curves), (4.8, 3.3), title=title)
    for each, (name, table) in zip(axes, curves.items(), strict=True):
        _panel(each, str(name), table)
    return saved(figure, target)


def _kept(table: "pd.DataFrame") -> str:
    """What the circuits get smaller in: where edges are dropped, all nodes stay."""
    return "edges" if len(set(table["nodes"].tolist())) == 1 < len(set(table["edges"].tolist())) else "nodes"


def _panel(axes: "Axes", name: str, table: "pd.DataFrame") -> None:
    what = _kept(table)
    kept = table[what].to_numpy() > 0
    of = lambda column: table[column].to_numpy(float)[kept]
    sizes = of(what)
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    names = ("faithfulness", "completeness", "random")
    curves, colours = {each: of(each) for each in names}, (*COLOURS[:2], GREY)
    series(axes, sizes, curves, band=(of("low"), of("high")), colours=colours, dashed=("random",))
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.1), max(high, 1.1))
    log_axis(axes, "x", float(sizes.min()), float(sizes.max()))
    note = "band: 95 % interval over prompts" if np.isfinite(of("low")).any() else "one prompt has no interval"
    labelled(axes, label=f"{what} kept", side="share of the metric recovered", title=name, note=note)
    legend(axes)
