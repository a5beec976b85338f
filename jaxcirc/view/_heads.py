"""Effects of heads, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_choice, check_kind, check_list
from .._figures import headline, heat_map, new_figure, panel_size, saved, signed, token_names, written
from ..attribution import HeadEffects
from ._effects import largest


if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"z": "output", "q": "query", "k": "key", "v": "value"}
BY = ("head", "position")


def draw_head_effects(
    effects: HeadEffects,
    path: str | Path | None = None,
    *,
    by: str = "head",
    tokens: Sequence[str] | None = None,
    metric: str | None = None,
) -> "Figure":
    """Draws the effects of all heads as heat maps, of outputs, queries, keys and values, means over prompts: red positive, blue negative,
    symmetric about 0. The title says what found them. Keys and values that several heads share have a column a group.

    **Arguments:**

    - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`.
    - `by`: layers by `"head"`, summed over positions; or by `"position"`, summed over heads. - `tokens`: the text at each position.
    - `metric`: what it is called, for the title.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for another number of tokens, and another suffix.

    >>> prompts = jc.data.ioi(tokenizer, 2, seed=0)
    >>> effects = jc.head_effects(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> len(jc.draw_head_effects(effects, "heads.svg", metric="logit difference").axes)  # four panels and their bars
    8
    """
    target = written("draw_head_effects", path)
    check_kind("draw_head_effects: effects", effects, HeadEffects, "what jc.head_effects gives")
    check_choice("draw_head_effects: by", by, BY)
    seq = effects.z.shape[-1]
    if tokens is not None and len(check_list("draw_head_effects: tokens", "texts", tokens)) != seq:
        raise ValueError(f"draw_head_effects: tokens are the text at each of {seq} positions, got {len(tokens)}.")
    across = None if tokens is None or by == "head" else token_names(tokens)
    over = -1 if by == "head" else -2
    values = {part: np.asarray(getattr(effects, part), np.float64).sum(over).mean(0) for part in PARTS}
    size = panel_size(values["z"].shape, None, across)
    total = float(np.mean(np.asarray(effects.total, np.float64)))
    title = headline(
        "Effects of heads, corrupt − clean", method=effects.method.words, metric=metric, prompts=len(effects.total)
    )
    figure, axes = new_figure(len(PARTS), size, title=f"{title}\ntotal effect {total:+z.3g}")
    scale = signed("effect", largest(values.values()))
    for each, (part, name) in zip(axes, PARTS.items(), strict=True):
        shared = getattr(effects, part).shape != effects.z.shape
        heat_map(
            each,
            values[part],
            scale,
            side="layer",
            label="position" if by == "position" else "group of heads that share it" if shared else "head",
            title=f"{name}, summed over {'positions' if by == 'head' else 'heads'}",
            columns=across,
        )
    return saved(figure, target)
