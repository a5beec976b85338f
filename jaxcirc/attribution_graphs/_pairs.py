"""The largest entries of a product of two tall matrices, without the product."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int


AT_ONCE = 2**22  # entries of the product that are made at once


def strongest_pairs(
    left: Float[np.ndarray, "m width"], right: Float[np.ndarray, "n width"], count: int
) -> tuple[Int[np.ndarray, "pair 2"], Float[np.ndarray, " pair"]]:
    """Finds the `count` entries of `left @ right.T` that are largest by absolute value, the largest first, none of them 0.

    No entry is larger than the product of its rows' norms. So rows are gone through from the largest norms on, and what cannot reach the
    least of those found so far is never multiplied.
    """
    by_norm = lambda x: (
        order := np.argsort(-np.linalg.norm(x, axis=1), kind="stable"),
        np.linalg.norm(x, axis=1)[order],
    )
    (rows, row_norms), (columns, column_norms) = by_norm(left), by_norm(right)
    index, values = np.zeros((0, 2), int), np.zeros(0, np.result_type(left, right))
    for block in _blocks(len(rows), max(1, AT_ONCE // max(1, min(len(columns), AT_ONCE)))):
        least = np.abs(values[-1]) if len(values) == count else 0.0
        reached = int(np.searchsorted(-row_norms[block.start] * column_norms, -least, side="left"))
        if reached == 0:
            break
        for other in _blocks(reached, AT_ONCE):
            mine, others = rows[block], columns[:reached][other]
            # [row width] · [column width] -> [row column]
            product = left[mine] @ right[others].T
            found = _largest(product, count)
            here = np.stack([mine[found[0]], others[found[1]]], axis=1)
            index, values = np.concatenate([index, here]), np.concatenate([values, product[found]])
            kept = np.argsort(-np.abs(values), kind="stable")[:count]
            index, values = index[kept], values[kept]
    there = values != 0
    return index[there], values[there]


def _largest(product: Float[np.ndarray, "row column"], count: int) -> tuple[np.ndarray, ...]:
    flat = np.abs(product).reshape(-1)
    found = np.argpartition(-flat, count - 1)[:count] if count < len(flat) else np.arange(len(flat))
    return np.unravel_index(found, product.shape)


def _blocks(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
