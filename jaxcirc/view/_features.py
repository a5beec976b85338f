"""Feature Jacobians, drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._checks import check_kind
from .._figures import COLOURS, dots, labelled, new_figure, saved, SMALL, written
from .._words import counted
from ..features import FeatureJacobian


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 30


def draw_features(jacobian: FeatureJacobian, path: str | Path | None = None, *, mark: int | None = None) -> "Figure":
    """Draws a feature Jacobian: how its gradients are distributed, and |gradient| against |cosine|, with a line of least squares and their
    correlation.

    **Arguments:**

    - `jacobian`: of `jc.feature_jacobian`, or some rows of it: `J.rows((J.position == 9) & (J.target == 880))`. Of very many pairs some
      thousands are drawn as dots, evenly chosen.
    - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`.
    - `mark`: the number of the row that stands out; by default that of the largest |gradient|.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for no pairs, a row that there is not, and another suffix.

    >>> J = jc.feature_jacobian(model, saes, tokens, "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", minimum=0.1)
    >>> figure = jc.draw_features(J, "features.svg")
    """
    target = written("draw_features", path)
    check_kind("draw_features: jacobian", jacobian, FeatureJacobian, "what jc.feature_jacobian gives")
    if not len(jacobian):
        raise ValueError("draw_features: the Jacobian has no pair. Lower its minimum, or take other rows.")
    row = int(jacobian.strongest(1)[0]) if mark is None else mark
    if not 0 <= row < len(jacobian):
        raise ValueError(f"draw_features: the Jacobian has rows 0 to {len(jacobian) - 1}, and mark is {mark}.")
    both = len(jacobian) > 1 and jacobian.has_cosine
    title = (
        f"Feature Jacobian: {jacobian.target_site} by {jacobian.source_site}; {counted(len(jacobian), 'pair')}, latents above "
        f"{jacobian.minimum:g}, 1 prompt"
    )
    figure, axes = new_figure(1 + both, (4.8, 3.5), title=title)
    _gradients(axes[0], jacobian, row)
    if both:
        _against_cosine(axes[1], jacobian, row)
    return saved(figure, target)


def _gradients(axes: "Axes", jacobian: FeatureJacobian, row: int) -> None:
    marked = float(jacobian.gradient[row])
    axes.hist(jacobian.gradient.astype(np.float64), bins=BINS, color=COLOURS[0], edgecolor="white", linewidth=0.5)
    axes.axvline(marked, color=COLOURS[1], linewidth=1.5)
    low, high = axes.get_xlim()
    left = marked > (low + high) / 2
    axes.annotate(
        _name(jacobian, row),
        (marked, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, -12),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=SMALL,
        color=COLOURS[1],
    )
    labelled(axes, label="gradient, target's units per source's", side="pairs", title="gradients")


def _against_cosine(axes: "Axes", jacobian: FeatureJacobian, row: int) -> None:
    gradient, cosine = (np.abs(column).astype(np.float64) for column in (jacobian.gradient, jacobian.cosine))
    slope, start = np.polyfit(gradient, cosine, 1) if np.ptp(gradient) > 0 else (0.0, float(cosine.mean()))
    marked = (float(gradient[row]), float(cosine[row]), _name(jacobian, row))
    step = dots(axes, gradient, cosine, line=(float(slope), float(start)), marked=marked)
    correlation = jacobian.correlation()
    labelled(
        axes,
        label="|gradient|",
        side="|cosine|",
        title=f"Pearson {correlation.pearson:z.3f}, Spearman {correlation.spearman:z.3f}",
        note="a dot a pair" if step == 1 else f"{len(gradient[::step])} of {counted(len(jacobian), 'pair')}",
    )


def _name(jacobian: FeatureJacobian, row: int) -> str:
    return f"{jacobian.source[row]} → {jacobian.target[row]} at {jacobian.position[row]}"
