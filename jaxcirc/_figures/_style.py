"""The style of figures, and how they are written.

Figures are made with matplotlib's objects and not with pyplot: nothing is registered anywhere, no theme and no setting is changed, and
what a user has set holds where nothing is said here.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, TYPE_CHECKING

from .._files import check_figure, writing_file
from .._words import counted


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POSITIVE, NEGATIVE, GREY = "#b2182b", "#2166ac", "#555555"  # the first two are those of the diverging colours
COLOURS = ("#15803d", "#b45309", "#6d28d9", "#0f766e")  # of series: no red and no blue, which are signs
SIZE, SMALL, DOTS = 9.0, 8.0, 150  # of titles and of all else, in points; dots an inch of a PNG
WIDEST = 14.0  # inches of a figure of several columns
LETTER = 0.58  # how wide a letter is, as a part of the size of the font

# What else would differ from one writing to the next: the time, and names that are drawn at random.
_METADATA: dict[str, dict[str, Any]] = {
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
    ".png": {"Software": None},
}
# Names in an SVG file follow from what it holds, and text in it is text: small, and found by who searches.
_SETTINGS: dict[Any, Any] = {"svg.hashsalt": "jaxcirc", "svg.fonttype": "none"}


def new_figure(count: int, size: tuple[float, float], *, title: str, columns: int = 2) -> tuple["Figure", list["Axes"]]:
    """A figure of `count` panels, each of `size` inches, in rows of `columns`, or one below the other where they are wide, under a title
    that is broken to the figure's width.
    """
    from matplotlib.figure import Figure

    columns = 1 if columns * size[0] > WIDEST else max(1, min(columns, count))
    rows = math.ceil(count / columns)
    wide = columns * size[0]
    lines = wrapped(title, wide, SIZE + 1)
    figure = Figure(figsize=(wide, rows * size[1] + 0.2 * len(lines) + 0.15), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=SIZE + 1, parse_math=False)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes[count:]:
        each.remove()
    for each in axes[:count]:
        each.tick_params(labelsize=SMALL)
        each.grid(False)
    return figure, axes[:count]


def room_of(axes: "Axes") -> tuple[float, float]:
    """How large a panel is, with all around it, in inches."""
    figure, spec = cast("Figure", axes.figure), axes.get_subplotspec()
    assert spec is not None
    wide, high = figure.get_size_inches()
    rows, columns = spec.get_gridspec().get_geometry()
    return wide / columns, high / rows


def wrapped(text: str, wide: float, size: float) -> list[str]:
    """Breaks text to a width in inches; its own line breaks stay."""
    letters = max(int(wide * 72 / (LETTER * size)), 12)
    return [line for part in text.split("\n") for line in textwrap.wrap(part, letters) or [""]]


def headline(
    what: str, *, method: str | None = None, metric: str | None = None, prompts: int | Sequence[int] | None = None
) -> str:
    """A figure's title: what it shows, by which method, of which metric, and over how many prompts, as far as these are known."""
    numbers = () if prompts is None else (prompts,) if isinstance(prompts, int) else prompts
    parts = [f"by {method}" if method else "", f"metric: {metric}" if metric else "", mean_of(*numbers)]
    return "; ".join([what, *filter(None, parts)])


def mean_of(*prompts: int) -> str:
    """Says over how many prompts a figure's panels are: `"mean of 2 prompts and 3 prompts"`, and of a single one that it is one."""
    numbers = [*dict.fromkeys(prompts)]
    what = " and ".join(counted(number, "prompt") for number in numbers)
    return what if numbers in ([], [1]) else f"mean of {what}"


def written(name: str, path: str | Path | None) -> Path | None:
    """Where a figure is to be written, if anywhere. **Raises:** `ValueError` unless it can be; call it before any work."""
    return None if path is None else check_figure(f"{name}: path", path)


def saved(figure: "Figure", target: Path | None) -> "Figure":
    """The figure, which is also written, whole or not at all, if there is a place for it. The same figure makes the same bytes."""
    if target is not None:
        import matplotlib

        with writing_file(target) as aside, matplotlib.rc_context(_SETTINGS):
            figure.savefig(aside, dpi=DOTS, metadata=_METADATA[target.suffix])
    return figure
