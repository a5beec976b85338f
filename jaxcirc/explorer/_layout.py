"""Where nodes stand: rows from bottom to top, positions from left to right, each node in a slot of its own.

Slots are one unit wide, and nodes stand in their middle. So the vertical lines at whole numbers, between slots, are free of nodes through
all rows; and between any two lines of nodes is a channel across all columns. `_routes.py` leads edges along these.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


RADIUS = 0.32  # of a node; half of a slot's width is 0.5
BETWEEN = 0.75  # height of the channel between two rows, beside what lines of nodes leave free
SHAPE = 1.7  # width of the whole by its height, if it can be had


class Band(NamedTuple):
    """A row or a column: its label, or of a column the position, `None` for nodes without one; from where to where it goes."""

    label: str | int | None
    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """Where nodes stand: `places` `[node 2]` are x and y, y upward, in units of a slot; nodes are discs of radius `RADIUS` at most."""

    places: Float[np.ndarray, "node 2"]
    rows: list[Band]
    columns: list[Band]
    width: float
    height: float


def layout(rows: Sequence[int], positions: Sequence[int | None], labels: Sequence[str]) -> Layout:
    """Places nodes, in a cell of one row and position in the order in which they come: give the strongest first.

    **Arguments:** - `rows`, `positions` `[node]`: of each node the row, counted from the bottom, and the position, `None` for one that has
    none; rows and positions without nodes take no room. - `labels`: of the rows.
    """
    cells: dict[tuple[int, int], list[int]] = {}
    for node, (row, pos) in enumerate(zip(rows, positions, strict=True)):
        cells.setdefault((row, -1 if pos is None else pos), []).append(node)
    sizes = {cell: len(nodes) for cell, nodes in cells.items()}
    widths, lines = _best(sizes)
    apart = _apart(*_extent(widths, lines))
    lefts, columns, x = {}, [], 1.0
    for pos, width in widths.items():
        lefts[pos] = x
        columns.append(Band(None if pos < 0 else pos, x - 0.5, x + width * apart + 0.5))
        x += width * apart + 1  # a slot stays free between columns
    places, bands, y = np.zeros((len(rows), 2)), [], BETWEEN
    for row, count in lines.items():
        for pos, width in widths.items():
            for i, node in enumerate(cells.get((row, pos), [])):
                line, rank = divmod(i, width)
                beside = (width - 1) // 2 + (rank + 1) // 2 * (1 if rank % 2 else -1)  # the strongest in the middle
                places[node] = lefts[pos] + beside * apart + apart // 2 + 0.5, y + count - line - 0.5
        bands.append(Band(labels[row], y, y + count))
        y += count + BETWEEN
    return Layout(places, bands, columns, x, y)


def _best(sizes: dict[tuple[int, int], int]) -> tuple[dict[int, int], dict[int, int]]:
    """Chooses how many nodes at most stand side by side, so that the whole is about as wide as a screen. **Returns:** the width of each
    position and the number of lines of each row.
    """
    positions, rows = sorted({pos for _, pos in sizes}), sorted({row for row, _ in sizes})
    choices: list[tuple[float, dict[int, int], dict[int, int]]] = []
    for most in _sizes(max(sizes.values(), default=1)):
        widths = {pos: max(min(_most(sizes, 1, pos), most), 2) for pos in positions}
        lines = {row: max(-(-n // widths[p]) for (r, p), n in sizes.items() if r == row) for row in rows}
        width, height = _extent(widths, lines)
        choices.append((abs(math.log(width / height / SHAPE)), widths, lines))
    return min(choices, key=lambda choice: choice[0])[1:] if sizes else ({}, {})


def _extent(widths: dict[int, int], lines: dict[int, int]) -> tuple[float, float]:
    return float(sum(widths.values()) + len(widths) + 1), sum(lines.values()) + BETWEEN * (len(lines) + 1)


def _apart(width: float, height: float) -> int:
    """From which slot to which nodes stand: side by side, or with free slots between where there is room for them."""
    return max(min(int(SHAPE * 0.8 * height / width), 4), 1)


def _sizes(largest: int) -> Iterable[int]:
    """Yields every small size, and of large ones each a sixth more than the one before."""
    size = 2
    while size < largest:
        yield size
        size = max(size + 1, size * 7 // 6)
    yield max(largest, 2)


def _most(sizes: dict[tuple[int, int], int], axis: int, at: int) -> int:
    return max(size for cell, size in sizes.items() if cell[axis] == at)
