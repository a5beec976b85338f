"""Paths through a circuit, the strongest first."""

import heapq
import itertools
import math
from collections.abc import Iterable

from ._rows import EdgeRow


def strongest_paths(edges: Iterable[EdgeRow], source: str, target: str, most: int) -> list[tuple[list[str], float]]:
    """Finds paths from one node to another: the names on the way and the weakest edge's weight. From a node to itself there is none."""
    out: dict[str, list[EdgeRow]] = {}
    into: dict[str, list[EdgeRow]] = {}
    for edge in edges:
        out.setdefault(edge.source, []).append(edge)
        into.setdefault(edge.target, []).append(edge)
    ahead = _strongest_ahead(into, target)
    if source == target or source not in ahead:
        return []
    # Best first, by what a path is worth with the best way on from there: so each step is one of a path that is found, and of as many that
    # are equally strong the longest first. Without the look ahead a weak edge at the end would have all ways to it walked before.
    paths, number, heap = [], itertools.count(), [(-ahead[source], 0, 0, [source], math.inf)]
    while heap and len(paths) < most:
        *_, path, weakest = heapq.heappop(heap)
        if path[-1] == target:
            paths.append((path, weakest))
            continue
        for edge in out.get(path[-1], ()):
            if edge.target in ahead and edge.target not in path:
                weight = edge.weight if abs(edge.weight) < abs(weakest) else weakest
                worth = min(abs(weight), ahead[edge.target])
                heapq.heappush(heap, (-worth, -len(path), next(number), [*path, edge.target], weight))
    return paths


def _strongest_ahead(into: dict[str, list[EdgeRow]], target: str) -> dict[str, float]:
    """Of each node from which the target is reached, the size of the weakest edge on the strongest way."""
    ahead: dict[str, float] = {}
    heap = [(-math.inf, target)]
    while heap:
        size, node = heapq.heappop(heap)
        if node in ahead:
            continue
        ahead[node] = -size
        for edge in into.get(node, ()):
            heapq.heappush(heap, (max(size, -abs(edge.weight)), edge.source))
    return ahead
