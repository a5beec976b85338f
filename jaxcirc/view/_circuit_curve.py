"""Curves of circuits over their size, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_kind
from .._figures import COLOURS, GREY, labelled, legend, log_axis, new_figure, saved, series, written
from .._words import counted
from ..localisation import CircuitCurve


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIDES = {"faithfulness": "faithfulness, share of the metric", "accuracy": "accuracy, share of examples"}


def draw_circuit_curve(
    curves: CircuitCurve | Mapping[str, CircuitCurve], path: str | Path | None = None, *, metric: str | None = None
) -> "Figure":
    """Draws faithfulness and accuracy of circuits against their size, with 95 % intervals over examples as bands.

    **Arguments:** - `curves`: one, or up to four by name, to compare. - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or
    `.png`. - `metric`: what it is called, for the title.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for none or more than four, and another suffix.
    """
    target = written("draw_circuit_curve", path)
    who = "draw_circuit_curve: curves"
    named = {"": curves} if isinstance(curves, CircuitCurve) else curves
    check_kind(who, named, Mapping, "what jc.circuit_curve gives, or several by name")
    if not 0 < len(named) <= len(COLOURS):
        raise ValueError(f"{who}: expected one to {len(COLOURS)} curves, got {len(named)}.")
    for each in named.values():
        check_kind(who, each, CircuitCurve, "what jc.circuit_curve gives")
    examples = " and ".join(dict.fromkeys(counted(len(each.full), "example") for each in named.values()))
    of = f"; metric: {metric}" if metric else ""
    title = f"Faithfulness and accuracy of circuits against their size{of}; {examples}"
    figure, axes = new_figure(len(SIDES), (4.8, 3.6), title=title)
    for each, what in zip(axes, SIDES, strict=True):
        _panel(each, named, what)
    return saved(figure, target)


def _panel(axes: "Axes", curves: Mapping[str, CircuitCurve], what: str) -> None:
    smallest = min(float(each.sizes[0]) for each in curves.values())
    largest = max(float(each.sizes[-1]) for each in curves.values())
    for level in (0.0, 1.0):
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
    for colour, (name, each) in zip(COLOURS, curves.items(), strict=False):
        band = each.interval(what) if len(each.full) > 1 else None
        series(axes, each.sizes, {_labelled(name, each, what): getattr(each, what)}, band=band, colours=(colour,))
    # Of few examples an interval may be of any width: the panel shows the curves and what fits beside them.
    middles = np.concatenate([getattr(each, what) for each in curves.values()])
    low, high = min(0.0, float(middles.min())), max(1.0, float(middles.max()))
    reach, (bottom, top) = (high - low) / 2, axes.get_ylim()
    axes.set_ylim(max(min(low - 0.05, bottom), low - reach), min(max(high + 0.05, top), high + reach))
    log_axis(axes, "x", smallest, largest)
    single = any(len(each.full) == 1 for each in curves.values())
    note = "bands: 95 % interval over examples" + ("; one example has none" if single else "")
    labelled(axes, label="size of the circuit, share of all", side=SIDES[what], title=what, note=note)
    legend(axes, loc="best")


def _labelled(name: str, each: CircuitCurve, what: str) -> str:
    """A curve's name, with its scores."""
    score = f"CPR {each.cpr:z.2f}, CMD {each.cmd:z.2f}" if what == "faithfulness" else f"mean {each.acc_auc:z.2f}"
    return f"{name}: {score}" if name else score
