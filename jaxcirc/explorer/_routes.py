"""How edges run: straight where that is free, else along the lines between slots, so that none runs under a node it does not touch."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ._layout import Layout, RADIUS


CLEARANCE = 0.05  # between a straight edge and the rim of a node that it passes
LANE = 0.5 - RADIUS - CLEARANCE - 0.01  # how far from the middle of a gap an edge may run
APART = 0.16  # between edges with the same ends
_AT_ONCE = 2**20  # pairs of an edge and a node that are tested at a time


class Routes(NamedTuple):
    """`points` `[edge 5 2]`: the ends and bends of each edge, the last repeated where there are fewer; `corners` `[edge]`: how many."""

    points: Float[np.ndarray, "edge point 2"]
    corners: Int[np.ndarray, " edge"]


def routes(layout: Layout, ends: Int[np.ndarray, "edge 2"]) -> Routes:
    """Leads edges from their sources to their targets, `ends` being numbers of nodes.

    A detour goes from the node to a corner of its slot, on a line between slots past all rows that lie between, across in the channel
    before its target, and from a corner of the target's slot into it. All of these are free of nodes by how `layout` places them. Edges
    of one source share a lane on the vertical way, edges of one target on the horizontal one, so that what belongs together runs together.

    **Raises:** `ValueError` for an edge from a node to itself.
    """
    if len(ends) and (ends[:, 0] == ends[:, 1]).any():
        raise ValueError("routes: an edge goes from a node to itself. Leave it out.")
    source, target = layout.places[ends[:, 0]], layout.places[ends[:, 1]]
    beside = _parallel(ends)
    shift = np.stack([beside * APART, np.zeros(len(ends))], axis=1)
    points = _detours(source, target, ends, beside)
    free = straight_is_free(layout, ends, shift)
    points[free, 0] = (source + shift)[free]
    points[free, 1:] = (target + shift)[free, None]
    return Routes(points, np.where(free, 2, 5))


def straight_is_free(
    layout: Layout, ends: Int[np.ndarray, "edge 2"], shift: Float[np.ndarray, "edge 2"] | float = 0.0
) -> Bool[np.ndarray, " edge"]:
    """Says which edges pass no node but their own, if they run straight and are so far shifted to a side."""
    nodes = layout.places.astype(np.float32)
    a, b = ((layout.places[ends[:, i]] + shift).astype(np.float32) for i in (0, 1))
    each, free = max(_AT_ONCE // max(len(nodes), 1), 1), np.ones(len(ends), bool)
    for first in range(0, len(ends), each):
        some = slice(first, first + each)
        way = b[some] - a[some]
        # [edge node 2]: from the source of the edge to the node, split along the edge and across it
        x, y = (nodes[None, :, i] - a[some, None, i] for i in (0, 1))
        along = np.clip((x * way[:, :1] + y * way[:, 1:]) / (way**2).sum(1, keepdims=True), 0, 1)
        distance = (x - along * way[:, :1]) ** 2 + (y - along * way[:, 1:]) ** 2
        rows = np.arange(len(way))
        distance[rows, ends[some, 0]] = distance[rows, ends[some, 1]] = np.inf
        free[some] = distance.min(1) > (RADIUS + CLEARANCE) ** 2
    return free


def _detours(
    source: Float[np.ndarray, "edge 2"],
    target: Float[np.ndarray, "edge 2"],
    ends: Int[np.ndarray, "edge 2"],
    beside: Float[np.ndarray, " edge"],
) -> Float[np.ndarray, "edge 5 2"]:
    """Leads every edge around: from the upper corner of its source's slot to the lower corner of its target's, or the other way if the
    target is further down; between nodes of one line above both.
    """
    up = np.where(target[:, 1] > source[:, 1] + 0.5, 1, -1)
    level = np.abs(target[:, 1] - source[:, 1]) < 0.5
    right = np.where(target[:, 0] >= source[:, 0], 0.5, -0.5)
    # As far as whole slots go the same line serves both ends; else each has the one towards the other.
    same = np.abs(target[:, 0] - source[:, 0]) < 0.5
    lane_x, lane_y = ((_spread(ends[:, i]) + np.clip(beside, -1, 1)) / 2 * LANE for i in (0, 1))
    gap = source[:, 0] + right + lane_x
    before = np.where(same, gap, target[:, 0] - right + lane_x)
    leave = source[:, 1] + np.where(level, 0.5, 0.5 * up) + lane_y
    enter = np.where(level, leave, target[:, 1] - 0.5 * up + lane_y)
    corners = [source, _pairs(gap, leave), _pairs(gap, enter), _pairs(before, enter), target]
    return np.stack(corners, axis=1)


def _pairs(x: Float[np.ndarray, " edge"], y: Float[np.ndarray, " edge"]) -> Float[np.ndarray, "edge 2"]:
    return np.stack([x, y], axis=1)


def _spread(node: Int[np.ndarray, " edge"]) -> Float[np.ndarray, " edge"]:
    """A number from -1 to 1 for each node, those of neighbours far apart: multiples of the golden ratio."""
    return (node * 0.6180339887 % 1) * 2 - 1


def _parallel(ends: Int[np.ndarray, "edge 2"]) -> Float[np.ndarray, " edge"]:
    """Numbers edges with the same ends, around 0: -½ and ½ for two of them."""
    order = np.lexsort((ends[:, 1], ends[:, 0]))
    sorted_ends = ends[order]
    new = np.ones(len(ends), bool)
    new[1:] = (sorted_ends[1:] != sorted_ends[:-1]).any(1)
    group = np.cumsum(new) - 1
    first, size = np.flatnonzero(new), np.bincount(group) if len(ends) else np.zeros(0, int)
    number = np.arange(len(ends)) - first[group] if len(ends) else np.zeros(0)
    found = np.zeros(len(ends))
    found[order] = number - (size[group] - 1) / 2 if len(ends) else 0
    return found
