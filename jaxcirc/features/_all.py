"""Pairs of latents at any two positions."""

import numpy as np
from jaxtyping import Float

from .._typing import Progress
from ..jacobian import EdgeJacobian
from ..runs import size_for
from ._ends import Dictionaries
from ._latents import Latents, Pairs, read, written
from ._point import Point


def all_pairs(targets: Latents, sources: Latents, *, causal: bool) -> Pairs:
    """All pairs, in the order of the targets; where nothing comes from later positions, without those."""
    met = np.ones((len(targets.unit), len(sources.unit)), bool)
    if causal:
        met = sources.position[None, :] <= targets.position[:, None]
    return Pairs(*np.nonzero(met))


def gradients_at_all(
    J: EdgeJacobian, saes: Dictionaries, point: Point, targets: Latents, sources: Latents, pairs: Pairs
) -> Float[np.ndarray, " pair"]:
    """The derivative of each pair's target by its source: bilinear forms of the Jacobian."""
    sizes = [
        size_for(len(latents.unit), "latents of a prompt", *J.product.whole_shapes) for latents in (targets, sources)
    ]
    return _contracted(J, saes, point, targets, sources, sizes)[pairs.target, pairs.source]


def gradients_one_by_one(
    J: EdgeJacobian,
    saes: Dictionaries,
    point: Point,
    targets: Latents,
    sources: Latents,
    pairs: Pairs,
    progress: Progress,
) -> Float[np.ndarray, " pair"]:
    """The same for pairs at one position where information may come back to it, in a model that is not causal: position by position."""
    positions, gradient = np.unique(targets.position), np.empty(len(pairs.target), J.dtype)
    most = lambda latents: int(np.bincount(latents.position).max())
    sizes = [
        size_for(most(latents), "latents of a position", *J.product.whole_shapes) for latents in (targets, sources)
    ]
    for done, position in enumerate(positions):
        progress(done, len(positions), "positions")
        rows, columns = (np.flatnonzero(latents.position == position) for latents in (targets, sources))
        matrix = _contracted(J, saes, point, targets.at(rows), sources.at(columns), sizes)
        some = slice(*np.searchsorted(pairs.target, [rows[0], rows[-1] + 1]))
        gradient[some] = matrix[pairs.target[some] - rows[0], pairs.source[some] - columns[0]]
    progress(len(positions), len(positions), "positions")
    return gradient


def _contracted(
    J: EdgeJacobian, saes: Dictionaries, point: Point, targets: Latents, sources: Latents, sizes: list[int]
) -> Float[np.ndarray, "m k"]:
    at_target, at_source = (latents.padded(size) for latents, size in zip((targets, sources), sizes, strict=True))
    left, right = read(saes.target, point, *at_target), written(saes.source, point, *at_source)
    return np.asarray(J.contract(left, at_target[0], right, at_source[0]))
