"""Pairs at the same position: all of a prompt's positions in one pass through the blocks."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._typing import Progress
from ..jacobian import EdgeJacobian
from ..linear import contract_own, numbers_held, Segment, TILE
from ..runs import allowance, halving, size_for
from ._ends import Dictionaries
from ._latents import Latents, Pairs, read, written
from ._point import Point


Make = Callable[[Int[Array, " n"], Int[Array, " n"]], Float[Array, "n width"]]


class _Layout(NamedTuple):
    """Where the latents of each position begin among the targets (`rows`) and the sources (`columns`), and the tiles in which they meet:
    their corners, and the number of each position's first. The entries at the end, `seq`, are how many there are.
    """

    rows: Int[np.ndarray, " seq+1"]
    columns: Int[np.ndarray, " seq+1"]
    first: Int[np.ndarray, " seq+1"]
    corners: Int[np.ndarray, "tile 2"]


def at_shared_positions(targets: Latents, sources: Latents) -> tuple[Latents, Latents]:
    """Those that have a partner at their position."""
    there = np.intersect1d(targets.position, sources.position)
    kept = lambda latents: latents.at(np.isin(latents.position, there))
    return kept(targets), kept(sources)


def same_pairs(targets: Latents, sources: Latents) -> Pairs:
    """All pairs at the same position, in the order of the targets."""
    begin, end = (np.searchsorted(sources.position, targets.position, side=side) for side in ("left", "right"))
    count = end - begin
    target = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(target)) - np.repeat(np.cumsum(count) - count, count)
    return Pairs(target, begin[target] + nth)


def gradients_at_same(
    J: EdgeJacobian,
    saes: Dictionaries,
    point: Point,
    targets: Latents,
    sources: Latents,
    pairs: Pairs,
    progress: Progress,
) -> Float[np.ndarray, " pair"]:
    """The derivative of each pair's target by its source."""
    left = lambda position, unit: read(saes.target, point, position, unit)
    right = lambda position, unit: written(saes.source, point, position, unit)
    return products_at_same(J.product.segments, left, right, targets, sources, pairs, held=_held(J), progress=progress)


def products_at_same(
    segments: tuple[Segment, ...],
    left: Make,
    right: Make,
    targets: Latents,
    sources: Latents,
    pairs: Pairs,
    *,
    held: int,
    progress: Progress = lambda done, of, stage: None,
) -> Float[np.ndarray, " pair"]:
    """`left^T J right` for each pair, J the derivative at a position's own chain through `segments`, or with none of them the identity.

    `left` and `right` make covectors and vectors of lists of positions and units; one on its way holds `held` bytes.
    """
    layout = _lay_out(targets, sources)
    forward = len(sources.unit) <= len(targets.unit)

    def in_parts(budget: int) -> np.ndarray:
        cuts, found = _cuts(layout, budget // held), []
        # All parts have the sizes of the largest, and a tile may reach beyond the last latent.
        most = lambda starts: int(np.diff(starts[cuts]).max())
        m, k = (
            size_for(most(starts) + TILE - 1, "latents of positions", held) for starts in (layout.rows, layout.columns)
        )
        n_tiles = size_for(most(layout.first), "tiles", held, m, k)
        for done, (begin, end) in enumerate(itertools.pairwise(cuts)):
            progress(done, len(cuts) - 1, "positions")
            row, column = layout.rows[begin], layout.columns[begin]
            at_target = targets.at(slice(row, layout.rows[end])).padded(m)
            at_source = sources.at(slice(column, layout.columns[end])).padded(k)
            corners = layout.corners[layout.first[begin] : layout.first[end]] - [row, column]
            corners = jnp.asarray(np.pad(corners, ((0, n_tiles - len(corners)), (0, 0))), jnp.int32)
            ends = left(*at_target), at_target[0], right(*at_source), at_source[0]
            tiles = np.asarray(contract_own(segments, *ends, corners, forward=forward))
            here = pairs.at(slice(*np.searchsorted(pairs.target, [row, layout.rows[end]])))
            number, place = _places(layout, targets, here)
            found.append(tiles[(number - layout.first[begin], *place)])
        progress(len(cuts) - 1, len(cuts) - 1, "positions")
        return np.concatenate(found)

    return halving(in_parts, allowance(), "the memory budget")


def _lay_out(targets: Latents, sources: Latents) -> _Layout:
    seq = int(targets.position.max()) + 1
    rows, columns = (np.searchsorted(latents.position, np.arange(seq + 1)) for latents in (targets, sources))
    count = -(-np.diff(rows) // TILE) * -(-np.diff(columns) // TILE)
    corners = [
        (row, column)
        for position in range(seq)
        for row in range(rows[position], rows[position + 1], TILE)
        for column in range(columns[position], columns[position + 1], TILE)
    ]
    return _Layout(rows, columns, np.concatenate([[0], np.cumsum(count)]), np.array(corners))


def _places(layout: _Layout, targets: Latents, pairs: Pairs) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """In which tile each pair is, and where in it: a position's tiles lie row by row."""
    position = targets.position[pairs.target]
    row, column = pairs.target - layout.rows[position], pairs.source - layout.columns[position]
    across = -(-np.diff(layout.columns)[position] // TILE)
    return layout.first[position] + row // TILE * across + column // TILE, (row % TILE, column % TILE)


def _cuts(layout: _Layout, most: int) -> list[int]:
    """Positions at which the prompt is cut into parts of at most so many latents on either side, or of one position."""
    seq, cuts = len(layout.rows) - 1, [0]
    for end in range(1, seq + 1):
        large = max(starts[end] - starts[cuts[-1]] for starts in (layout.rows, layout.columns)) > most
        if large and end - 1 > cuts[-1]:
            cuts.append(end - 1)
    return [*cuts, seq]


def _held(J: EdgeJacobian) -> int:
    """The bytes that one vector on its way through a block holds, with its images and what becomes of them."""
    segment = J.product.segments[0]
    return J.dtype.itemsize * numbers_held(segment) // segment.resid.shape[0]
