"""A lens readout, drawn: layers by positions, in each cell the strongest token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .._figures import ENTROPY, RANK, token_grid
from .._tokens import token_texts
from ._readout import LensReadout


if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_readout(
    read: LensReadout, target: Path | None, *, tokens: Sequence[str] | None, tokenizer: Any, title: str, colour: str
) -> "Figure":
    """Draws a readout.

    **Arguments:** - `target`: where the picture is written too. - `tokens`: the text at each position. - `colour`: by the `"rank"` of the
    token that follows, which the last position has not, the `"entropy"`, or the `"probability"` of the strongest token.
    """
    texts = [token_texts(tokenizer, layer) for layer in np.asarray(read.tokens[:, :, 0])]
    return token_grid(
        _values(read, colour), texts, target, colour=colour, title=title, layers=read.layers, tokens=tokens
    )


def _values(read: LensReadout, colour: str) -> Float[np.ndarray, "layer seq"]:
    if colour == RANK:
        ranks = np.asarray(read.next_rank).astype(np.float64)
        return np.concatenate([ranks, np.full((len(ranks), 1), np.nan)], axis=1)
    return np.asarray(read.entropy if colour == ENTROPY else read.probabilities[:, :, 0]).astype(np.float64)
