"""Effects of heads, drawn."""

from pathlib import Path

import numpy as np

from .._checks import check_kind
from .._files import write_text, writing_file
from .._words import counted
from ..attribution import HeadEffects
from ._svg import check_svg
from .plot import document, heat_map


PARTS = {"z": "output", "q": "query", "k": "key", "v": "value"}


def draw_head_effects(effects: HeadEffects, path: str | Path) -> None:
    """Draws the effects of all heads as an SVG file: of outputs, queries, keys and values, summed over positions, mean over prompts. The
    title and every panel say what found them. Keys and values that several heads share have a column a group.

    **Raises:** `ValueError` for a file that is not named as SVG.
    """
    check_svg(path)
    check_kind("draw_head_effects: effects", effects, HeadEffects, "what jc.head_effects gives")
    means = f"mean of {counted(len(effects.total), 'prompt')}; total effect {float(np.mean(effects.total)):+z.3g}"
    words = effects.method.words
    panels = [
        heat_map(
            np.asarray(getattr(effects, part)).sum(-1).mean(0).tolist(),
            label="head" if getattr(effects, part).shape == effects.z.shape else "group of heads that share it",
            side="layer",
            title=f"{name}, summed over positions",
            note=f"{words}; {means}",
            unit="effect",
        )
        for part, name in PARTS.items()
    ]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title=f"Effects of heads, corrupt − clean, by {words}"))
