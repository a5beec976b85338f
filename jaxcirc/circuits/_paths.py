"""Paths through a circuit, the strongest first."""

import heapq
import itertools
import math
from collections.abc import Iterable

from ._rows import EdgeRow


def strongest_paths(edges: Iterable[EdgeRow], source: str, target: str, most: int) -> list[tuple[list[str], float]]:
    """Finds paths from one node to another: the names on the way and the weakest edge's weight."""
    out: dict[str, list[EdgeRow]] = {}
    for edge in edges:
        out.setdefault(edge.source, []).append(edge)
    # Best first: a path only becomes weaker as it grows, so that the first to arrive is the strongest.
    paths, number, heap = [], itertools.count(), [(-math.inf, 0, [source], math.inf)]
    while heap and len(paths) < most:
        _, _, path, weakest = heapq.heappop(heap)
        if path[-1] == target:
            paths.append((path, weakest))
            continue
        for edge in out.get(path[-1], ()):
            weight = edge.weight if abs(edge.weight) < abs(weakest) else weakest
            heapq.heappush(heap, (-abs(weight), next(number), [*path, edge.target], weight))
    return paths
