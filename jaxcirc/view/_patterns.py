"""Attention patterns, drawn."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Bool, Int

from .._files import write_text, writing_file
from ..models import Transformer
from ..patching import head_patterns
from ._svg import check_svg
from ._tokens import token_names
from .plot import document, heat_map


NOTES = {
    "none": "attention pattern",
    "value": "attention, by the norm of the value at the key",
    "output": "attention, by the norm of the value through W_O at the key",
}


def draw_patterns(
    model: Transformer,
    tokens: Int[Array, " seq"],
    heads: Sequence[tuple[int, int]],
    path: str | Path,
    value_weighted: bool = False,
    *,
    through_output: bool = False,
    names: Sequence[str] | None = None,
    mask: Bool[Array, " seq"] | None = None,
) -> None:
    r"""Draws the attention patterns of some heads on one prompt as heat maps in an SVG file: queries downwards, keys across.

    **Arguments:**

    - `tokens` `[seq]`: one prompt. `mask` `[seq]`: False for padding.
    - `heads`: as `(layer, head)`, a panel each.
    - `value_weighted`: weighted by the norm of the value at the key, $A_{qk} \lVert v_k \rVert$; with `through_output` by
      $\lVert v_k W_O \rVert$, that of what it writes. `jc.patching.head_patterns` gives the numbers.
    - `names`: the text of each token.

    **Raises:** `ValueError` for a head that is not there, another number of names, and a file that is not named as SVG.

    >>> names = [tokenizer.decode(int(token)) for token in tokens]
    >>> jc.draw_patterns(model, tokens, [(0, 1), (1, 2)], "patterns.svg", value_weighted=True, names=names)
    """
    check_svg(path)
    if through_output and not value_weighted:
        raise ValueError(
            "draw_patterns: through_output says by what values are weighted. Give value_weighted=True too."
        )
    weigh = "output" if through_output else "value" if value_weighted else "none"
    patterns = np.asarray(head_patterns(model, tokens, heads, weigh=weigh, mask=mask))
    if names is not None and len(names) != len(tokens):
        raise ValueError(f"draw_patterns: names are the text of each of {len(tokens)} tokens, got {len(names)}.")
    shown = None if names is None else token_names(names)
    panels = [
        heat_map(
            pattern.tolist(),
            label="key",
            side="query",
            title=f"head {layer}.{head}",
            note=NOTES[weigh],
            columns=shown,
            rows=shown,
            most=1.0 if weigh == "none" else None,
            positive=True,
        )
        for (layer, head), pattern in zip(heads, patterns, strict=True)
    ]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title="Attention patterns of heads"))
