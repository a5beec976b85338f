"""Plots of time against size: log-log panels with a guide line of slope 1, so that what grows faster than its size shows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np

from jaxcirc._figures import COLOURS, GREY, labelled, legend, log_axis, new_figure, saved, series, written


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(plots: Sequence[dict[str, Any]], path: str | Path | None = None) -> "Figure":
    """The plots of `_sweeps.sweep`, two in a row, which are also written to `path`."""
    target = written("draw", path)
    figure, axes = new_figure(len(plots), (4.4, 3.2), title="Time against size")
    for each, given in zip(axes, plots, strict=True):
        _panel(each, given)
    return saved(figure, target)


def _panel(axes: "Axes", given: dict[str, Any]) -> None:
    values, curves = given["values"], given["seconds"]
    times = [took for each in curves.values() for took in each]
    of = {name: np.asarray(took, np.float64) for name, took in curves.items()}
    series(axes, np.asarray(values, np.float64), of, colours=[COLOURS[i % len(COLOURS)] for i in range(len(curves))])
    # Through the last point of the first curve with slope 1: what lies below it on the left has grown faster than its size.
    last = next(iter(curves.values()))[-1]
    axes.plot(values, [last * value / values[-1] for value in values], color=GREY, linestyle="--", label="slope 1")
    log_axis(axes, "x", float(min(values)), float(max(values)))
    log_axis(axes, "y", float(min(times)), float(max(times)))
    axes.set_xticks(values, [f"{value:g}" for value in values])
    fixed = ", ".join(f"{name} {value}" for name, value in given["fixed"].items())
    labelled(axes, label=given["label"], side="seconds", note=fixed)
    legend(axes)
