"""Self-repair, drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .._files import write_text, writing_file
from ..components import SelfRepair
from ._curves import check_svg
from .plot import document, heat_map, scatter


MOST = 4000  # dots in a panel


def draw_self_repair(found: SelfRepair, path: str | Path, *, heads: Sequence[tuple[int, int]] = ()) -> None:
    """Draws the slopes of all heads as an SVG file, and beside them the tokens of some heads with the line through them.

    **Arguments:** - `heads`: `(layer, head)`s; without any, the head with the largest slope.

    **Raises:** `ValueError` for a head that there are no numbers of, or a file that is not named as SVG.
    """
    check_svg(path)
    for head in heads:
        if tuple(head) not in found.heads:
            raise ValueError(
                f"draw_self_repair: there is no head {tuple(head)} in the result, which has {len(found.heads)} heads."
            )
    largest = np.unravel_index(np.nanargmax(found.slope), found.slope.shape)
    chosen = heads or [(int(largest[0]), int(largest[1]))]
    low, high = found.interval()
    panels = [
        _slopes(found),
        *(_tokens(found, layer, head, (low[layer, head], high[layer, head])) for layer, head in chosen),
    ]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title="Self-repair: what later heads do about a head that is ablated"))


def _slopes(found: SelfRepair) -> str:
    above = "" if found.minimum is None else f", of which those with a direct effect above {found.minimum:g}"
    return heat_map(
        found.slope.tolist(),
        label="head",
        side="layer",
        title="slope of backup on direct effect",
        note=f"{int(found.used.sum())} tokens of {len(found.used)} prompts{above}",
        unit="slope",
    )


def _tokens(found: SelfRepair, layer: int, head: int, interval: tuple[float, float]) -> str:
    direct, backup = found.points(layer, head)
    step = -(-len(direct) // MOST)
    note = "a dot a token" if step == 1 else f"a dot every {step} tokens"
    slope, intercept = (float(x[layer, head]) for x in (found.slope, found.intercept))
    return scatter(
        list(zip(direct[::step].tolist(), backup[::step].tolist(), strict=True)),
        label="direct effect of the head (logits)",
        side="backup: change of later heads' (logits)",
        title=f"head {layer}.{head}: slope {slope:.2f} (95 %: {interval[0]:.2f} to {interval[1]:.2f})",
        note=f"{note}; line: {slope:.3g} x {'+' if intercept >= 0 else '-'} {abs(intercept):.2g}",
        fit=(slope, intercept),
    )
