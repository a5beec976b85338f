"""A lens readout, drawn: layers by positions, in each cell the strongest token, coloured by the rank of the token that follows."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_choice
from .._files import check_figure, writing_file
from ._readout import LensReadout


if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("rank", "entropy")


def draw_readout(
    read: LensReadout,
    tokens: Sequence[str],
    shown: Sequence[Sequence[str]],
    *,
    title: str,
    colour: str = "rank",
    path: str | Path | None = None,
) -> "Figure":
    """Draws a readout.

    **Arguments:** - `tokens`: the text at each position. - `shown[layer][position]`: the text of the strongest token. - `colour`: `"rank"`
    of the token that follows (dark where it is the first; nothing follows the last position) or `"entropy"` (dark where it is small).
    - `path`: also writes the picture, by its suffix `.svg`, `.pdf` or `.png`.

    **Returns:** a matplotlib figure, which is part of no global state.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    check_choice("JacobianLens.plot: colour", colour, COLOURS)
    target = None if path is None else check_figure("JacobianLens.plot: path", path)
    layers, seq = read.entropy.shape
    if colour == "rank":
        values = np.full((layers, seq), np.nan)
        values[:, : seq - 1] = np.asarray(read.next_rank)
        norm, label = LogNorm(1, max(float(np.nanmax(values, initial=2.0)), 2.0)), "rank of the token that follows"
    else:
        values, norm, label = np.asarray(read.entropy, float), None, "entropy (nats)"
    figure = Figure(figsize=(max(5.0, 0.75 * seq + 2.5), max(2.5, 0.32 * layers + 1.6)))
    axes = figure.add_subplot()
    image = axes.imshow(values, aspect="auto", origin="lower", cmap="viridis", norm=norm)
    axes.set_facecolor("#eeeeee")
    for layer, position in np.ndindex(layers, seq):
        value = values[layer, position]
        light = np.isnan(value) or float(np.asarray(image.norm(value))) > 0.6
        text = _plain(shown[int(layer)][int(position)])
        axes.text(
            position,
            layer,
            text if len(text) <= 9 else f"{text[:8]}…",
            ha="center",
            va="center",
            fontsize=7,
            color="black" if light else "white",
        )
    names = [f"{_plain(token)} {position}" for position, token in enumerate(tokens)]
    axes.set_xticks(range(seq), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(layers), [str(layer) for layer in read.layers], fontsize=8)
    axes.set_ylabel("layer")
    axes.set_title(title, fontsize=9)
    figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01).set_label(label, fontsize=8)
    figure.tight_layout()
    if target is not None:
        with writing_file(target) as aside:
            figure.savefig(aside)
    return figure


def _plain(token: str) -> str:
    """A token as it can be seen, and without meaning to matplotlib."""
    shown = "".join(letter if letter.isprintable() else "�" for letter in token.replace("\n", "↵"))
    return (shown.strip() or "␣").replace("$", r"\$")
