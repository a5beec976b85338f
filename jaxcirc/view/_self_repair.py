"""Self-repair, drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._checks import check_kind, check_list
from .._files import write_text, writing_file
from .._words import counted
from ..components import SelfRepair
from ._svg import check_svg
from .plot import document, heat_map, scatter


MOST = 4000  # dots in a panel


def draw_self_repair(repair: SelfRepair, path: str | Path, *, heads: Sequence[tuple[int, int]] = ()) -> None:
    """Draws the slopes of all heads as an SVG file, and beside them the tokens of some heads with the line through them.

    **Arguments:** - `heads`: `(layer, head)`s; without any, the head with the largest slope.

    **Raises:** `ValueError` for a head that there are no numbers of, or a file that is not named as SVG.
    """
    check_svg(path)
    check_kind("draw_self_repair: repair", repair, SelfRepair, "what jc.self_repair gives")
    for head in check_list("draw_self_repair: heads", "heads, as (layer, head),", heads):
        check_kind("draw_self_repair: heads", head, Sequence, "a list of heads as (layer, head)")
        if tuple(head) not in repair.heads:
            raise ValueError(
                f"draw_self_repair: there is no head {tuple(head)} in the result, which has {len(repair.heads)} heads."
            )
    last = len(repair.slope) - 1
    chosen = heads or [max(repair.heads, key=lambda at: -np.inf if at[0] == last else repair.slope[at])]
    low, high = repair.interval()
    panels = [
        _slopes(repair),
        *(_tokens(repair, layer, head, (low[layer, head], high[layer, head])) for layer, head in chosen),
    ]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title="Self-repair: what later heads do about a head that is ablated"))


def _slopes(repair: SelfRepair) -> str:
    slope = repair.slope.copy()
    slope[-1] = np.nan  # nothing comes after the last layer, so there is nothing that could repair
    above = "" if repair.minimum is None else f", of which those with a direct effect above {repair.minimum:g}"
    return heat_map(
        slope.tolist(),
        label="head",
        side="layer",
        title="slope of backup on direct effect",
        note=f"{counted(int(repair.used.sum()), 'token')} of {counted(len(repair.used), 'prompt')}{above}",
        unit="slope",
    )


def _tokens(repair: SelfRepair, layer: int, head: int, interval: tuple[float, float]) -> str:
    direct, backup = repair.points(layer, head)
    last = layer == len(repair.slope) - 1
    step = -(-len(direct) // MOST)
    note = "a dot a token" if step == 1 else f"a dot every {step} tokens"
    slope, intercept = (float(x[layer, head]) for x in (repair.slope, repair.intercept))
    return scatter(
        list(zip(direct[::step].tolist(), backup[::step].tolist(), strict=True)),
        label="direct effect of the head (logits)",
        side="backup: change of later heads' (logits)",
        title=f"head {layer}.{head}: no head comes after it"
        if last
        else f"head {layer}.{head}: slope {slope:z.2f} (95 %: {interval[0]:z.2f} to {interval[1]:z.2f})",
        note=note if last else f"{note}; line: {slope:z.3g} x {'+' if intercept >= 0 else '-'} {abs(intercept):.2g}",
        fit=False if last else (slope, intercept),
    )
