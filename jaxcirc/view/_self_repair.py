"""Self-repair, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_kind, check_list
from .._figures import dots, heat_map, labelled, new_figure, panel_size, saved, signed, written
from .._words import counted
from ..components import SelfRepair


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_self_repair(
    repair: SelfRepair, path: str | Path | None = None, *, heads: Sequence[tuple[int, int]] = ()
) -> "Figure":
    """Draws the slopes of all heads as a heat map, layers by heads, red positive and blue negative; and beside it the tokens of some heads
    with the line through them.

    **Arguments:** - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`. - `heads`: `(layer, head)`s; without any, the
    head with the largest slope.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for a head that there are no numbers of, and another suffix.

    >>> tokens = jc.data.ioi(tokenizer, 8, seed=0).clean
    >>> figure = jc.draw_self_repair(jc.self_repair(model, tokens, jc.Resample.rolled(tokens)), heads=[(1, 2)])
    """
    target = written("draw_self_repair", path)
    check_kind("draw_self_repair: repair", repair, SelfRepair, "what jc.self_repair gives")
    for head in check_list("draw_self_repair: heads", "heads as (layer, head)", heads):
        check_kind("draw_self_repair: heads", head, Sequence, "a list of heads as (layer, head)")
        if tuple(head) not in repair.heads:
            raise ValueError(
                f"draw_self_repair: there is no head {tuple(head)} in the result, which has {len(repair.heads)} heads."
            )
    last = len(repair.slope) - 1
    chosen = heads or [max(repair.heads, key=lambda at: -np.inf if at[0] == last else repair.slope[at])]
    low, high = repair.interval()
    above = "" if repair.minimum is None else f", of which those with a direct effect above {repair.minimum:g}"
    title = (
        f"Self-repair: what later heads do about a head that is ablated, logit of {repair.logit}; "
        f"{counted(int(repair.used.sum()), 'token')} of {counted(len(repair.used), 'prompt')}{above}"
    )
    figure, axes = new_figure(1 + len(chosen), _size(repair), title=title)
    _slopes(axes[0], repair)
    for each, (layer, head) in zip(axes[1:], chosen, strict=True):
        _tokens(each, repair, layer, head, (low[layer, head], high[layer, head]))
    return saved(figure, target)


def _size(repair: SelfRepair) -> tuple[float, float]:
    wide, high = panel_size(repair.slope.shape, None, None)
    return max(wide, 4.6), max(high, 3.4)


def _slopes(axes: "Axes", repair: SelfRepair) -> None:
    slope = repair.slope.astype(np.float64)
    slope[-1] = np.nan  # nothing comes after the last layer, so there is nothing that could repair
    heat_map(
        axes,
        slope,
        signed("slope, logits per logit"),
        side="layer",
        label="head",
        title="slope of backup on direct effect",
        missing="no head comes after it, or it was not asked for",
    )


def _tokens(axes: "Axes", repair: SelfRepair, layer: int, head: int, interval: tuple[float, float]) -> None:
    direct, backup = repair.points(layer, head)
    last = layer == len(repair.slope) - 1
    slope, intercept = (float(x[layer, head]) for x in (repair.slope, repair.intercept))
    step = dots(axes, direct, backup, line=None if last else (slope, intercept))
    note = "a dot a token" if step == 1 else f"a dot every {step} tokens"
    line = f"; line: {slope:z.3g} x {'+' if intercept >= 0 else '-'} {abs(intercept):.2g}"
    # There is none of a line through one prompt alone.
    reach = "" if np.isnan(interval).any() else f" (95 %: {interval[0]:z.2f} to {interval[1]:z.2f})"
    labelled(
        axes,
        label="direct effect of the head (logits)",
        side="backup: change of\nlater heads' (logits)",
        title=f"head {layer}.{head}: no head comes after it"
        if last
        else f"head {layer}.{head}: slope {slope:z.2f}{reach}",
        note=note if last else note + line,
    )
