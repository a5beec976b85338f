"""Feature Jacobians, drawn."""

from pathlib import Path

import numpy as np

from .._checks import check_kind
from .._files import write_text, writing_file
from .._words import counted
from ..features import FeatureJacobian
from ._svg import check_svg
from .plot import document, histogram, scatter


MOST_DOTS = 4000


def draw_features(jacobian: FeatureJacobian, path: str | Path, *, mark: int | None = None) -> None:
    """Draws a feature Jacobian as an SVG file: how its gradients are distributed, and |gradient| against |cosine|, with a line of least
    squares and their correlation.

    **Arguments:**

    - `jacobian`: of `jc.feature_jacobian`, or some rows of it: `J.rows((J.position == 9) & (J.target == 880))`. Of very many pairs some
      thousands are drawn as dots, evenly chosen.
    - `mark`: the number of the row that stands out; by default that of the largest |gradient|.

    **Raises:** `ValueError` for a row that there is not, and a file that does not end in `.svg`.

    >>> J = jc.feature_jacobian(model, saes, tokens, "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out", minimum=0.1)
    >>> jc.draw_features(J, "features.svg")
    """
    check_svg(path)
    check_kind("draw_features: jacobian", jacobian, FeatureJacobian, "what jc.feature_jacobian gives")
    row = int(jacobian.strongest(1)[0]) if mark is None else mark
    if not 0 <= row < len(jacobian):
        raise ValueError(f"draw_features: the Jacobian has rows 0 to {len(jacobian) - 1}, and mark is {mark}.")
    panels = [_gradients(jacobian, row)]
    if len(jacobian) > 1 and jacobian.has_cosine:
        panels.append(_against_cosine(jacobian, row))
    with writing_file(path) as aside:
        write_text(aside, document(panels, title=f"{jacobian.target_site} by {jacobian.source_site}"))


def _gradients(jacobian: FeatureJacobian, row: int) -> str:
    return histogram(
        jacobian.gradient.tolist(),
        label="gradient",
        side="pairs",
        title=counted(len(jacobian), "pair"),
        note=f"{jacobian.target_site} by {jacobian.source_site}",
        marked=(float(jacobian.gradient[row]), _name(jacobian, row)),
    )


def _against_cosine(jacobian: FeatureJacobian, row: int) -> str:
    sizes = np.abs(np.stack([jacobian.gradient, jacobian.cosine], axis=1)).astype(float)
    step = -(-len(jacobian) // MOST_DOTS)
    drawn = np.arange(0, len(jacobian), step)
    correlation = jacobian.correlation()
    return scatter(
        [(a, b) for a, b in sizes[drawn].tolist()],
        label="|gradient|",
        side="|cosine|",
        title=f"Pearson {correlation.pearson:z.3f}, Spearman {correlation.spearman:z.3f}",
        note=f"{len(drawn)} of {counted(len(jacobian), 'pair')}" if step > 1 else "",
        fit=True,
        marked=((float(sizes[row, 0]), float(sizes[row, 1])), _name(jacobian, row)),
    )


def _name(jacobian: FeatureJacobian, row: int) -> str:
    return f"{jacobian.source[row]} → {jacobian.target[row]} at {jacobian.position[row]}"
