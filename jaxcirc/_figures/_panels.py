"""Panels of dots and of curves."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ._style import COLOURS, GREY, room_of, SIZE, SMALL, wrapped


if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOTS = 4000


def labelled(axes: "Axes", *, label: str, side: str, title: str = "", note: str = "") -> None:
    """Writes what is across and upwards, and the title above."""
    wide, _ = room_of(axes)
    below = [label, *(wrapped(note, wide - 0.8, SMALL) if note else [])]
    axes.set_xlabel("\n".join(below), fontsize=SMALL, parse_math=False)
    axes.set_ylabel(side, fontsize=SMALL, parse_math=False)
    axes.set_title("\n".join(wrapped(title, wide - 0.8, SIZE)), fontsize=SIZE, parse_math=False)


def dots(
    axes: "Axes",
    x: Float[np.ndarray, " point"],
    y: Float[np.ndarray, " point"],
    *,
    colour: str = COLOURS[0],
    name: str | None = None,
    line: tuple[float, float] | None = None,
    marked: tuple[float, float, str] | None = None,
) -> int:
    """Draws dots, evenly chosen where there are very many, a dashed line of given slope and intercept, and one dot that stands out, with
    its name.

    **Returns:** of how many points one is drawn: 1 for all.
    """
    step = max(1, -(-len(x) // MOST_DOTS))
    axes.scatter(
        x[::step], y[::step], s=14, color=colour, alpha=0.5, linewidths=0, label=name, rasterized=len(x) > MOST_DOTS
    )
    if line is not None:
        axes.axline((0.0, line[1]), slope=line[0], color=GREY, linestyle="--", linewidth=1.0, zorder=0.5)
    if marked is not None:
        a, b, text = marked
        axes.scatter([a], [b], s=36, color=COLOURS[1], zorder=3)
        left = len(x) > 1 and a > (float(np.min(x)) + float(np.max(x))) / 2
        axes.annotate(
            text,
            (a, b),
            xytext=(-6 if left else 6, 7),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=SMALL,
            color=COLOURS[1],
            parse_math=False,
        )
    return step


def series(
    axes: "Axes",
    x: Float[np.ndarray, " point"],
    curves: Mapping[str, Float[np.ndarray, " point"]],
    *,
    band: tuple[Float[np.ndarray, " point"], Float[np.ndarray, " point"]] | None = None,
    colours: Sequence[str] = COLOURS,
    dashed: Collection[str] = (),
) -> None:
    """Draws curves with a dot at every point, each over those behind it, and a band around the first; those of some names dashed."""
    if band is not None and np.isfinite(band).any():
        axes.fill_between(x, band[0], band[1], color=colours[0], alpha=0.18, linewidth=0)
    for number, (colour, (name, values)) in enumerate(zip(colours, curves.items(), strict=False)):
        style = {"linestyle": "--" if name in dashed else "-", "zorder": 2 + 1 / (2 + number)}
        axes.plot(x, values, color=colour, linewidth=1.5, marker="o", markersize=3.5, label=name, **style)


def legend(axes: "Axes", **how) -> None:
    """Names the series, beside what they show."""
    for text in axes.legend(fontsize=SMALL - 0.5, frameon=False, **how).get_texts():
        text.set_parse_math(False)


def log_axis(axes: "Axes", which: str, low: float, high: float) -> None:
    """Makes the axis `"x"` or `"y"` logarithmic, with a little room around `low` to `high`, and numbers that have room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    (axes.set_xlim if which == "x" else axes.set_ylim)(low / 1.3, high * 1.3)
    axis = axes.xaxis if which == "x" else axes.yaxis
    decades = math.log10(high / low)
    axis.set_major_locator(
        LogLocator(
            subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.5 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        )
    )
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
