"""A circuit as a static picture, SVG."""

import html

from .._meta import CircuitMeta
from .._rows import EdgeRow, METRIC, NodeRow, note_of
from ._layout import choose, Layout, layout, NEGATIVE, POSITIVE


_SVG_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #444; } .unit { font-size: 8.5px; fill: #fff; pointer-events: none; }
.unit.pale { fill: #333; } .column { font-size: 12px; font-weight: 600; }
"""


def drawing(nodes: list[NodeRow], edges: list[EdgeRow], meta: CircuitMeta, *, most_edges: int) -> str:
    """Draws the picture alone, as SVG."""
    nodes, edges = choose(nodes, edges, most_edges)
    place, notes = layout(nodes, edges, meta.tokens), meta.annotations or {}
    size = f'width="{place.width:.0f}" height="{place.height:.0f}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {place.width:.0f} {place.height:.0f}">',
        f'<style>{_SVG_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
    ]
    for i, (label, left, right) in enumerate(place.columns):
        if i % 2 == 0:
            parts.append(
                f'<rect x="{left:.0f}" y="0" width="{right - left:.0f}" height="{place.height:.0f}" fill="#f6f6f4"/>'
            )
        parts.append(
            f'<text class="column" x="{(left + right) / 2:.0f}" y="20" text-anchor="middle">{html.escape(label)}</text>'
        )
    parts += [f'<text x="4" y="{y + 4:.0f}">{html.escape(label)}</text>' for label, y in place.rows]
    strongest = max((abs(edge.weight) for edge in edges), default=1.0)
    parts += [_edge(edge, place, strongest) for edge in reversed(edges)]  # the strongest on top
    largest = max((abs(node.effect) for node in nodes), default=1.0)
    parts += [_node(node, place, largest, note_of(notes, node)) for node in nodes]
    if METRIC in place.places:
        x, y = place.places[METRIC]
        parts.append(
            f'<g class="node" data-n="{METRIC}"><rect x="{x - 30:.1f}" y="{y - 11:.1f}" width="60" height="22" rx="11" fill="#333"/>'
            f'<text class="unit" x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle">metric</text></g>'
        )
    return "\n".join([*parts, "</svg>"])


def _edge(edge: EdgeRow, place: Layout, strongest: float) -> str:
    (x1, y1), (x2, y2) = place.places[edge.source], place.places[edge.target]
    share = abs(edge.weight) / strongest
    bend = (y1 - y2) * 0.45
    return (
        f'<path class="edge" data-s="{html.escape(edge.source)}" data-t="{html.escape(edge.target)}" fill="none" '
        f'stroke="{_colour(edge.weight)}" stroke-width="{0.6 + 4.4 * share:.2f}" opacity="{0.15 + 0.6 * share**0.5:.2f}" '
        f'd="M{x1:.1f} {y1:.1f} C{x1:.1f} {y1 - bend:.1f} {x2:.1f} {y2 + bend:.1f} {x2:.1f} {y2:.1f}">'
        f"<title>{html.escape(edge.source)} → {html.escape(edge.target)}: {edge.weight:+z.4f}</title></path>"
    )


def _node(node: NodeRow, place: Layout, largest: float, note: str) -> str:
    x, y = place.places[node.node]
    share = (abs(node.effect) / largest) ** 0.5
    fill = f'fill="{_colour(node.effect)}" fill-opacity="{0.25 + 0.75 * share:.2f}" stroke="{_colour(node.effect)}"'
    shape = (
        f'<rect x="{x - 10:.1f}" y="{y - 10:.1f}" width="20" height="20" {fill}/>'
        if node.kind == "error"
        else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="12" {fill}/>'
    )
    pale = " pale" if share < 0.4 else ""
    title = f"{node.node}: {node.effect:+z.4f}" + (f"\n{note}" if note else "")
    return (
        f'<g class="node" data-n="{html.escape(node.node)}"><circle cx="{x:.1f}" cy="{y:.1f}" r="12" fill="#fff"/>{shape}'
        f'<text class="unit{pale}" x="{x:.1f}" y="{y + 3:.1f}" text-anchor="middle">{node.label}</text>'
        f"<title>{html.escape(title)}</title></g>"
    )


def _colour(value: float) -> str:
    return POSITIVE if value > 0 else NEGATIVE
