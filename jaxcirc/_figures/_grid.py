"""Grids of tokens: layers by positions, in each cell what is read there."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ._heat_map import heat_map, panel_size
from ._scale import Scale, shares, small_is_dark
from ._style import new_figure, saved
from ._text import shortened, token_names


if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANK, ENTROPY, PROBABILITY = COLOURED_BY = ("rank", "entropy", "probability")
LETTERS = 9  # of a token, for which a cell has room


def scale_of(colour: str) -> Scale:
    """What the colours of a grid mean: always dark where the reading is sure."""
    if colour == RANK:
        return small_is_dark("rank of the token that follows", log=True)
    return small_is_dark("entropy (nats)") if colour == ENTROPY else shares("probability of the token")


def token_grid(
    values: Float[np.ndarray, "layer seq"],
    texts: Sequence[Sequence[str]],
    target: Path | None,
    *,
    colour: str,
    title: str,
    layers: Sequence[object],
    tokens: Sequence[str] | None,
    side: str = "layer",
) -> "Figure":
    """Draws `values` as colours and `texts`, of the strongest tokens, in the cells, from the first layer at the bottom."""
    cells = [[shortened(text.strip(" ") or "␣", LETTERS) for text in row] for row in texts]
    names = None if tokens is None else token_names(tokens)
    rows = [str(layer) for layer in layers]
    size = panel_size(values.shape, rows, names, cell=(0.62, 0.27))
    figure, [axes] = new_figure(1, size, title=title)
    missing = "no token follows" if colour == RANK else "no value"
    heat_map(
        axes,
        values,
        scale_of(colour),
        side=side,
        label="position",
        rows=rows,
        columns=names,
        texts=cells,
        upwards=True,
        missing=missing,
    )
    return saved(figure, target)
