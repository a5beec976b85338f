"""Attention patterns, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Bool, Int

from .._checks import check_list
from .._figures import heat_map, new_figure, panel_size, saved, shares, sizes, token_names, written
from .._traced import check_untraced
from ..models import Transformer
from ..patching import head_patterns
from ._effects import largest


if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "none": "Attention patterns",
    "value": "Attention patterns, weighted by the norm of the value at the key",
    "output": "Attention patterns, weighted by the norm of the value through W_O at the key",
}
UNITS = {"none": "attention", "value": "attention · ‖v‖", "output": "attention · ‖v W_O‖"}


def draw_patterns(
    model: Transformer,
    tokens: Int[Array, " seq"],
    heads: Sequence[tuple[int, int]],
    path: str | Path | None = None,
    value_weighted: bool = False,
    *,
    through_output: bool = False,
    names: Sequence[str] | None = None,
    mask: Bool[Array, " seq"] | None = None,
) -> "Figure":
    r"""Draws the attention patterns of some heads on one prompt as heat maps: queries downwards, keys across; from 0 to 1, or weighted by
    the size of what is read, from 0 to the largest of any head.

    **Arguments:**

    - `tokens` `[seq]`: one prompt. `mask` `[seq]`: False for padding.
    - `heads`: as `(layer, head)`, a panel each.
    - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`.
    - `value_weighted`: weighted by the norm of the value at the key, $A_{qk} \lVert v_k \rVert$; with `through_output` by
      $\lVert v_k W_O \rVert$, that of what it writes. `jc.patching.head_patterns` gives the numbers.
    - `names`: the text of each token.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for a head that is not there, another number of names, and another suffix.

    >>> names = [tokenizer.decode(int(token)) for token in tokens]
    >>> figure = jc.draw_patterns(model, tokens, [(0, 1), (1, 2)], "patterns.svg", value_weighted=True, names=names)
    """
    check_untraced("draw_patterns", model)
    target = written("draw_patterns", path)
    if through_output and not value_weighted:
        raise ValueError(
            "draw_patterns: through_output says by what values are weighted. Give value_weighted=True too."
        )
    if names is not None and len(check_list("draw_patterns: names", "texts", names)) != len(tokens):
        raise ValueError(f"draw_patterns: names are the text of each of {len(tokens)} tokens, got {len(names)}.")
    weigh = "output" if through_output else "value" if value_weighted else "none"
    patterns = np.asarray(head_patterns(model, tokens, heads, weigh=weigh, mask=mask)).astype(np.float64)
    texts = None if names is None else token_names(names)
    scale = shares(UNITS[weigh]) if weigh == "none" else sizes(UNITS[weigh], largest([patterns]))
    title = f"{TITLES[weigh]}; {model.name}, 1 prompt" if model.name else f"{TITLES[weigh]}; 1 prompt"
    figure, axes = new_figure(len(patterns), panel_size(patterns.shape[1:], texts, texts), title=title)
    for each, (layer, head), pattern in zip(axes, heads, patterns, strict=True):
        heat_map(
            each,
            pattern,
            scale,
            side="query",
            label="key",
            title=f"head {layer}.{head}",
            rows=texts,
            columns=texts,
        )
    return saved(figure, target)
