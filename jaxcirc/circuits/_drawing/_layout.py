"""Where the nodes of a circuit stand on the page: sites from bottom to top, positions from left to right."""

import dataclasses

from ..._sites import Site
from ...explorer import short
from .._rows import EdgeRow, METRIC, NodeRow


STEP = 30  # from node to node
PER_LINE = 8  # nodes side by side in a cell, before a second line
MARGIN_LEFT, MARGIN_TOP = 74, 58
POSITIVE, NEGATIVE = "#b2182b", "#2166ac"  # colours of what raises the metric and what lowers it


@dataclasses.dataclass(frozen=True)
class Layout:
    """Centres of nodes in pixels, `places[name] = (x, y)`; `rows` and `columns` label the axes at their pixel."""

    places: dict[str, tuple[float, float]]
    rows: list[tuple[str, float]]
    columns: list[tuple[str, float, float]]  # label, left, right
    width: float
    height: float


def choose(nodes: list[NodeRow], edges: list[EdgeRow], most_edges: int) -> tuple[list[NodeRow], list[EdgeRow]]:
    """Chooses what is drawn: the strongest edges, the nodes that they touch, and the strongest others."""
    drawn = edges[:most_edges]
    touched = {edge.source for edge in drawn} | {edge.target for edge in drawn}
    return [node for i, node in enumerate(nodes) if node.node in touched or i < 60], drawn


def layout(nodes: list[NodeRow], edges: list[EdgeRow], tokens: list[str] | None) -> Layout:
    """Places every node: the strongest of a site and position first, in lines."""
    cells: dict[tuple[str, int], list[str]] = {}
    for node in nodes:
        cells.setdefault((node.site, -1 if node.pos is None else node.pos), []).append(node.node)
    positions = sorted({pos for _, pos in cells})
    sites = sorted({site for site, _ in cells}, key=Site.parse)

    lefts, columns, x = {}, [], float(MARGIN_LEFT)
    for pos in positions:
        widest = max(min(len(names), PER_LINE) for (_, p), names in cells.items() if p == pos)
        lefts[pos], right = x, x + STEP * max(widest, 2) + 12
        columns.append((_token(tokens, pos), x, right))
        x = right
    places, rows, y = {}, [], float(MARGIN_TOP)
    if any(edge.target == METRIC for edge in edges):
        places[METRIC] = ((MARGIN_LEFT + x) / 2, y + STEP / 2)
        rows.append((METRIC, y + STEP / 2))
        y += STEP * 1.9
    for site in reversed(sites):
        lines = max(-(-len(names) // PER_LINE) for (s, _), names in cells.items() if s == site)
        for pos in positions:
            for i, name in enumerate(cells.get((site, pos), [])):
                places[name] = (lefts[pos] + STEP * (0.7 + i % PER_LINE), y + STEP * (0.5 + i // PER_LINE))
        rows.append((short(site), y + STEP * lines / 2))
        y += STEP * (lines + 0.9)
    return Layout(places, rows, columns, x + 16, y)


def _token(tokens: list[str] | None, pos: int) -> str:
    if pos < 0:
        return "all positions"
    return f"{pos}" if tokens is None or pos >= len(tokens) else tokens[pos]
