"""Effects of whatever kind, drawn as heat maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_kind, check_list
from .._figures import headline, heat_map, new_figure, panel_size, saved, shortened, signed, token_names, written


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Effects = Float[Array | np.ndarray, "row column"]


def draw_effects(
    effects: Effects | Mapping[str, Effects],
    path: str | Path | None = None,
    *,
    rows: str = "layer",
    columns: str = "head",
    unit: str = "effect",
    title: str = "Effects",
    method: str | None = None,
    metric: str | None = None,
    prompts: int | None = None,
    tokens: Sequence[str] | None = None,
    row_names: Sequence[str] | None = None,
) -> "Figure":
    """Draws effects as heat maps, layers by heads or by positions, or anything else that has rows and columns: red positive, blue negative,
    symmetric about 0, and the same colours in all panels. What is NaN is grey.

    **Arguments:**

    - `effects` `[row column]`: or several by their names, a panel each.
    - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`.
    - `rows`, `columns`: what they are. - `tokens`: the text of each column, where columns are positions. - `row_names`: the name of each
      row; without them rows are counted from 0.
    - `unit`: of the numbers. - `title`, `method`, `metric`, `prompts`: what is drawn, how it was found, of which metric, and the mean of
      how many prompts it is: the figure's title.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for none, for arrays that have not two axes, or no numbers along one; another number of names; another
    suffix.

    >>> effects = jc.direct_effects(model, tokens[None]).heads  # [batch layer head seq]
    >>> figure = jc.draw_effects(effects.mean(0).sum(-1), unit="logits", title="Direct effects of heads", prompts=1)
    >>> figure.axes[0].get_ylabel(), figure.axes[0].get_xlabel()
    ('layer', 'head')
    """
    target = written("draw_effects", path)
    who = "draw_effects: effects"
    check_kind(who, effects, (jax.Array, np.ndarray, Mapping), "an array [row column], or several by name")
    named = effects if isinstance(effects, Mapping) else {"": effects}
    if not named:
        raise ValueError(f"{who}: expected at least one array [row column], got none.")
    arrays = {str(name): as_cells(who, values) for name, values in named.items()}
    names = {"tokens": tokens, "row_names": row_names}
    for axis, (what, given) in ((1, ("tokens", tokens)), (0, ("row_names", row_names))):
        for values in arrays.values():
            if given is not None and len(check_list(f"draw_effects: {what}", "texts", given)) != values.shape[axis]:
                raise ValueError(
                    f"draw_effects: {what} are the names of each of {values.shape[axis]} {columns if axis else rows}s, got {len(given)}."
                )
    across = None if names["tokens"] is None else token_names(list(names["tokens"]))
    down = None if row_names is None else [shortened(str(name), 20) for name in row_names]
    sizes = [panel_size(values.shape, down, across) for values in arrays.values()]
    size = tuple(map(max, zip(*sizes, strict=True)))
    scale = signed(unit, largest(arrays.values()))
    whole = headline(title, method=method, metric=metric, prompts=prompts)
    figure, axes = new_figure(len(arrays), size, title=whole)
    for each, (name, values) in zip(axes, arrays.items(), strict=True):
        heat_map(each, values, scale, side=rows, label=columns, title=name, rows=down, columns=across)
    return saved(figure, target)


def as_cells(who: str, values: object) -> Float[np.ndarray, "row column"]:
    """An array of two axes, with numbers along both. **Raises:** `ValueError` for another."""
    array = np.asarray(values)
    if array.ndim != 2 or not array.size or not (np.issubdtype(array.dtype, np.number) or array.dtype.kind == "V"):
        raise ValueError(
            f"{who}: expected numbers [row column], at least one, got an array {list(array.shape)} of {array.dtype}."
        )
    return array.astype(np.float64)


def largest(arrays) -> float | None:
    """The largest size among all numbers, `None` if there is none."""
    sizes = [np.abs(array[np.isfinite(array)]).max(initial=0.0) for array in arrays]
    return float(max(sizes)) or None
