"""Plots as SVG, by hand: log-log panels with a guide line of slope 1, so that what grows faster than its size shows."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple


WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 420, 300, 64, 34, 14, 64
COLOURS = ("#0b5fa5", "#c2410c", "#15803d", "#6d28d9")


class Axis(NamedTuple):
    """A logarithmic axis from `low` to `high` onto pixels from `begin` to `end`."""

    low: float
    high: float
    begin: float
    end: float

    def at(self, value: float) -> float:
        part = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.begin + part * (self.end - self.begin)


def draw(plots: Sequence[dict[str, Any]]) -> str:
    """The plots of `_sweeps.sweep`, two in a row, as one SVG document."""
    rows = -(-len(plots) // 2)
    panels = "".join(
        f'<g transform="translate({i % 2 * WIDTH},{i // 2 * HEIGHT})">{_panel(plot)}</g>'
        for i, plot in enumerate(plots)
    )
    size = f'width="{2 * WIDTH}" height="{rows * HEIGHT}" viewBox="0 0 {2 * WIDTH} {rows * HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
        f"<title>Time against size</title>"
        f'<rect width="100%" height="100%" fill="#ffffff"/>{panels}</svg>\n'
    )


def _panel(plot: dict[str, Any]) -> str:
    values, series = plot["values"], plot["seconds"]
    times = [took for each in series.values() for took in each]
    x = Axis(min(values) / 1.25, max(values) * 1.25, LEFT, WIDTH - RIGHT)
    y = Axis(min(times) / 1.6, max(times) * 1.6, HEIGHT - BOTTOM, TOP)
    parts = [_frame(plot, x, y), _guide(values, next(iter(series.values())), x, y)]
    parts += [_curve(values, took, COLOURS[i % len(COLOURS)], x, y) for i, took in enumerate(series.values())]
    names = [(name, COLOURS[i % len(COLOURS)]) for i, name in enumerate(series)] + [("slope 1", "#777777")]
    for i, (name, colour) in enumerate(names):
        parts.append(_text(LEFT + 8 + 116 * i, TOP - 8, name, fill=colour))
    return "".join(parts)


def _frame(plot: dict[str, Any], x: Axis, y: Axis) -> str:
    box = f'<rect x="{x.begin}" y="{y.end}" width="{x.end - x.begin}" height="{y.begin - y.end}" fill="none" stroke="#444444"/>'
    parts = [box]
    for value in plot["values"]:
        parts.append(_line(x.at(value), y.begin, x.at(value), y.begin + 4))
        parts.append(_text(x.at(value), y.begin + 16, f"{value}", anchor="middle"))
    for tick in ticks(y.low, y.high):
        parts.append(_line(x.begin, y.at(tick), x.end, y.at(tick), stroke="#e5e5e5"))
        parts.append(_text(x.begin - 6, y.at(tick) + 4, f"{tick:g} s", anchor="end"))
    fixed = ", ".join(f"{name} {value}" for name, value in plot["fixed"].items())
    middle = (x.begin + x.end) / 2
    parts.append(_text(middle, y.begin + 33, plot["label"], anchor="middle"))
    parts.append(_text(middle, y.begin + 48, fixed, anchor="middle", fill="#777777"))
    return "".join(parts)


def ticks(low: float, high: float) -> list[float]:
    """Powers of ten between the ends; 1, 2 and 5 times those where there are fewer than three."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 2, 5)):
        found = [float(f"{step}e{decade}") for decade in decades for step in steps]
        found = [tick for tick in found if low <= tick <= high]
        if len(found) >= 3:
            break
    return found


def _guide(values: Sequence[int], took: Sequence[float], x: Axis, y: Axis) -> str:
    """Through the last point with slope 1: what lies below it on the left has grown faster than its size."""
    first = max(values[0], values[-1] * y.low / took[-1])
    start = took[-1] * first / values[-1]
    return _line(x.at(first), y.at(start), x.at(values[-1]), y.at(took[-1]), stroke="#777777", dashes="5 4")


def _curve(values: Sequence[int], took: Sequence[float], colour: str, x: Axis, y: Axis) -> str:
    points = [(x.at(value), y.at(each)) for value, each in zip(values, took, strict=True)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'


def _line(x1: float, y1: float, x2: float, y2: float, *, stroke: str = "#444444", dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"{dashed}/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(text)}</text>'
