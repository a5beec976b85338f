"""Panels of coloured cells."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ._scale import Scale
from ._style import LETTER, room_of, SIZE, SMALL, wrapped


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

MISSING = "#d0d0d0"  # a cell without a number: light, so that the dash in it is read
LARGE = 10_000  # cells, from which on they are one picture, also in a file of lines
MOST_TEXTS, SMALLEST = 600, 5.0  # cells in which something is written, and its least size in points
ANGLE = 60.0  # of names below that have no room beside each other
AROUND = (1.75, 1.05)  # inches of a panel that are not cells: numbers of rows and the bar, the title and the label

Names = Sequence[str] | None


def panel_size(
    shape: tuple[int, int], rows: Names, columns: Names, *, cell: tuple[float, float] = (0.42, 0.3)
) -> tuple[float, float]:
    """How large a panel of such a heat map is, in inches: so that numbers have room in its cells, up to a page."""
    beside, below = _room(rows, columns)
    wide = min(max(cell[0] * shape[1], 2.2), 10.0)
    return wide + AROUND[0] + beside, min(max(cell[1] * shape[0], 1.9), 9.0) + AROUND[1] + below


def heat_map(
    axes: "Axes",
    values: Float[np.ndarray, "row column"],
    scale: Scale,
    *,
    side: str,
    label: str,
    title: str = "",
    note: str = "",
    rows: Names = None,
    columns: Names = None,
    texts: Sequence[Sequence[str]] | None = None,
    upwards: bool = False,
    missing: str = "no value",
) -> "QuadMesh":
    """Draws a panel of coloured cells with a bar that says what the colours mean, the first row on top. What is no finite number is grey,
    with a dash, and a line below says so.

    **Arguments:** - `side`, `label`: what rows and columns are. - `rows`, `columns`: their names, as `shown` makes them; without any they
    are counted from 0. - `texts`: what is written in the cells, instead of the numbers, if there is room. - `upwards`: the first row at
    the bottom. - `missing`: what a grey cell means.
    """
    from matplotlib import colormaps

    values = np.asarray(values, np.float64)
    n, m = values.shape
    cells = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(
        np.arange(m + 1) - 0.5,
        np.arange(n + 1) - 0.5,
        cells,
        cmap=colormaps[scale.colours].with_extremes(bad=MISSING),
        norm=scale.norm(values),
        rasterized=values.size > LARGE,
    )
    axes.set_ylim((-0.5, n - 0.5) if upwards else (n - 0.5, -0.5))
    room = _cell_size(axes, values.shape, rows, columns)
    name_columns(axes, m, columns, room[0])
    _name_rows(axes, n, rows, room[1])
    if np.ma.is_masked(cells):
        note = f"{note}\ngrey: {missing}".strip()
    wide = room[0] * m + 0.8
    axes.set_xlabel(
        "\n".join([label, *(wrapped(note, wide, SMALL - 1) if note else [])]), fontsize=SMALL, parse_math=False
    )
    axes.set_ylabel(side, fontsize=SMALL, parse_math=False)
    axes.set_title("\n".join(wrapped(title, wide, SIZE)), fontsize=SIZE, parse_math=False)
    bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.06, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # or else it is hundreds of patches, with seams between them
    bar.set_label(scale.label, fontsize=SMALL - 0.5, parse_math=False)
    bar.ax.tick_params(labelsize=SMALL - 0.5)
    if values.size <= MOST_TEXTS:
        _write(axes, mesh, values, texts or _numbers(values, zero="0" if scale.has_sign else ""), room)
    return mesh


def _room(rows: Names, columns: Names) -> tuple[float, float]:
    """Inches that names of rows take beside the numbers' room, and those of columns below."""
    longest = lambda names: 0 if names is None else max(map(len, names), default=0)
    beside = max(0.0, LETTER * SMALL / 72 * (longest(rows) - 2))
    below = max(0.0, LETTER * SMALL / 72 * (longest(columns) - 2) * math.sin(math.radians(ANGLE)))
    return beside, below


def _cell_size(axes: "Axes", shape: tuple[int, int], rows: Names, columns: Names) -> tuple[float, float]:
    """How large a cell is, about, in inches."""
    wide, high = room_of(axes)
    beside, below = _room(rows, columns)
    return (wide - AROUND[0] - beside) / shape[1], (high - AROUND[1] - below - 0.2) / shape[0]


def name_columns(axes: "Axes", count: int, names: Names, wide: float) -> None:
    shown = list(map(str, range(count))) if names is None else list(names)
    longest = LETTER * SMALL / 72 * (max(map(len, shown), default=0) + 1)
    slanted = names is not None and longest > wide
    needed = 1.5 * SMALL / 72 if slanted else longest
    at = range(0, count, every(wide, needed))
    how: dict[str, Any] = dict(rotation=ANGLE, ha="right", rotation_mode="anchor") if slanted else {}
    axes.set_xticks(at, [shown[i] for i in at], fontsize=SMALL, parse_math=False, **how)


def _name_rows(axes: "Axes", count: int, names: Names, high: float) -> None:
    shown = list(map(str, range(count))) if names is None else list(names)
    at = range(0, count, every(high, 1.25 * SMALL / 72))
    axes.set_yticks(at, [shown[i] for i in at], fontsize=SMALL, parse_math=False)


def every(inches: float, needed: float) -> int:
    """Says which of names have room that are so far from each other: 1 for all, 2 for every second one."""
    steps = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
    return next((step for step in steps if step * inches >= needed), steps[-1])


def _numbers(values: Float[np.ndarray, "row column"], zero: str) -> list[list[str]]:
    """Numbers with as many decimals as the largest of them has use for; for what is exactly zero, another text."""
    most = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
    steps = ((100, 0), (10, 1), (0.095, 2), (0.0095, 3))
    decimals = next((digits for least, digits in steps if most >= least), None)
    form = "z.0e" if decimals is None or most >= 1e5 else f"z.{decimals}f"
    return [
        [zero if value == 0 else f"{value:{form}}" if math.isfinite(value) else "–" for value in row]
        for row in values.tolist()
    ]


def _write(axes: "Axes", mesh: "QuadMesh", values, texts: Sequence[Sequence[str]], room: tuple[float, float]) -> None:
    """Writes in the cells, if there is room, in black or white."""
    longest = max(len(text) for row in texts for text in row)
    size = min(SMALL, 72 * room[1] * 0.62, 72 * room[0] * 0.92 / (LETTER * max(longest, 1)))
    if size < SMALLEST:
        return
    colours = np.asarray(mesh.cmap(mesh.norm(np.ma.masked_invalid(values))))
    light = colours[..., :3] @ np.array([0.299, 0.587, 0.114]) > 0.55
    for i, j in itertools.product(*map(range, values.shape)):
        if not texts[i][j]:
            continue
        axes.text(
            j,
            i,
            texts[i][j],
            ha="center",
            va="center",
            fontsize=size,
            color="black" if light[i, j] else "white",
            parse_math=False,
        )
