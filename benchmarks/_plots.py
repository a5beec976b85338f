"""Plots of time against size: log-log panels with a guide line of slope 1, so that what grows faster than its size shows."""

from collections.abc import Sequence
from typing import Any

from jaxcirc.view import plot


def draw(plots: Sequence[dict[str, Any]]) -> str:
    """The plots of `_sweeps.sweep`, two in a row, as one SVG document."""
    return plot.document([_panel(each) for each in plots], title="Time against size")


def _panel(given: dict[str, Any]) -> str:
    values, series = given["values"], given["seconds"]
    times = [took for each in series.values() for took in each]
    x = plot.across(min(values) / 1.25, max(values) * 1.25, log=True)
    y = plot.upwards(min(times) / 1.6, max(times) * 1.6, log=True)
    fixed = ", ".join(f"{name} {value}" for name, value in given["fixed"].items())
    parts = [plot.frame(x, y, label=given["label"], note=fixed, x_ticks=values, unit=" s")]
    parts += [_guide(values, next(iter(series.values())), x, y)]
    colours = [plot.COLOURS[i % len(plot.COLOURS)] for i in range(len(series))]
    for took, colour in zip(series.values(), colours, strict=True):
        parts += [plot.curve(x, y, list(zip(values, took, strict=True)), colour)]
    return "".join([*parts, plot.legend([*zip(series, colours, strict=True), ("slope 1", plot.GREY)])])


def _guide(values: Sequence[int], took: Sequence[float], x: plot.Axis, y: plot.Axis) -> str:
    """Through the last point with slope 1: what lies below it on the left has grown faster than its size."""
    first = max(values[0], values[-1] * y.low / took[-1])
    ends = [(first, took[-1] * first / values[-1]), (values[-1], took[-1])]
    return plot.line([(x.at(a), y.at(b)) for a, b in ends], stroke=plot.GREY, dashes="5 4")
