"""Curves of circuits over their size, drawn."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .._checks import check_kind
from .._files import write_text, writing_file
from .._words import counted
from ..localisation import CircuitCurve
from ._svg import check_svg
from .plot import across, band, COLOURS, curve, document, frame, legend, line, upwards


def draw_circuit_curve(curves: CircuitCurve | Mapping[str, CircuitCurve], path: str | Path) -> None:
    """Draws faithfulness and accuracy of circuits against their size as an SVG file, with 95 % intervals over examples.

    **Arguments:** - `curves`: one, or up to four by name, to compare.

    **Raises:** `ValueError` for none or more than four, or a file that is not named as SVG.
    """
    check_svg(path)
    who = "draw_circuit_curve: curves"
    named = {"": curves} if isinstance(curves, CircuitCurve) else curves
    check_kind(who, named, Mapping, "what jc.circuit_curve gives, or several by name")
    if not 0 < len(named) <= len(COLOURS):
        raise ValueError(f"{who}: expected one to {len(COLOURS)} curves, got {len(named)}.")
    for each in named.values():
        check_kind(who, each, CircuitCurve, "what jc.circuit_curve gives")
    panels = [_panel(named, "faithfulness"), _panel(named, "accuracy")]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title="Faithfulness and accuracy of circuits against their size"))


def _panel(curves: Mapping[str, CircuitCurve], what: str) -> str:
    columns = {name: _columns(each, what) for name, each in curves.items()}
    values = np.concatenate([np.concatenate(each) for each in columns.values()])
    smallest = min(float(each.sizes[0]) for each in curves.values())
    largest = max(float(each.sizes[-1]) for each in curves.values())
    x = across(smallest / 1.3, largest * 1.3, log=True)
    # Of few examples an interval may be of any width: the panel shows the curves and what fits beside them.
    middles = np.concatenate([middle for middle, _, _ in columns.values()])
    low, high = min(0.0, float(middles.min())), max(1.0, float(middles.max()))
    reach = (high - low) / 2
    bottom = max(float(np.nanmin(values)), low - reach)
    top = min(float(np.nanmax(values)), high + reach)
    y = upwards(min(low, bottom) - 0.05 * (high - low), max(high, top) + 0.05 * (high - low))
    parts = [frame(x, y, label="size of the circuit, share of all", side=what, note=_note(curves))]
    parts += [line([(x.begin, y.at(level)), (x.end, y.at(level))], dashes="2 3") for level in (0, 1)]
    for colour, (name, each) in zip(COLOURS, curves.items(), strict=False):
        middle, *ends = columns[name]
        at = lambda column, sizes=each.sizes: [
            (float(size), min(max(float(value), y.low), y.high)) for size, value in zip(sizes, column, strict=True)
        ]
        if not np.isnan(ends).any():
            parts += [band(x, y, at(ends[0]), at(ends[1]), colour)]
        parts += [curve(x, y, at(middle), colour)]
    room = len(curves) < 3
    names = [_labelled(name, each, what, room=room) for name, each in curves.items()]
    step = int((x.end - x.begin) / len(names))
    return "".join([*parts, legend(list(zip(names, COLOURS, strict=False)), step=step)])


def _columns(each: CircuitCurve, what: str) -> tuple[Float[np.ndarray, " size"], ...]:
    """The curve and the ends of its interval, NaN for a single example."""
    middle = getattr(each, what)
    nothing = np.full_like(middle, math.nan)
    return (middle, *(each.interval(what) if len(each.full) > 1 else (nothing, nothing)))


def _labelled(name: str, each: CircuitCurve, what: str, *, room: bool) -> str:
    """A curve's name, with its scores where there is room."""
    if name and not room:
        return name
    score = f"CPR {each.cpr:z.2f}, CMD {each.cmd:z.2f}" if what == "faithfulness" else f"mean {each.acc_auc:z.2f}"
    return f"{name}: {score}" if name else score


def _note(curves: Mapping[str, CircuitCurve]) -> str:
    return " and ".join(dict.fromkeys(counted(len(each.full), "example") for each in curves.values()))
