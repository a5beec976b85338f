"""A circuit as one self-contained page: a picture to point at, and its tables."""

import html
import json

from ..._words import counted
from .._meta import CircuitMeta
from .._rows import EdgeRow, METRIC, NodeRow, note_of
from ._layout import choose, Layout, layout, NEGATIVE, POSITIVE


_STYLE = """
pre { white-space: pre-wrap; overflow-wrap: anywhere }
body { font: 14px/1.45 system-ui, sans-serif; margin: 24px; color: #222; background: #fff; }
h1 { font-size: 19px; margin: 0 0 4px; } h2 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 2px 0 8px; max-width: 100ch; color: #555; }
svg.pointed .edge { opacity: .04; } svg.pointed .edge.on { opacity: .95; }
svg.pointed .node { opacity: .25; } svg.pointed .node.on { opacity: 1; } .node { cursor: default; }
table { border-collapse: collapse; font-size: 12.5px; } td, th { padding: 1px 12px 1px 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } .tables { display: flex; gap: 48px; flex-wrap: wrap; }
.up { color: #1f6fb4; } .down { color: #c8432b; }
"""

_SVG_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #444; } .unit { font-size: 8.5px; fill: #fff; pointer-events: none; }
.unit.pale { fill: #333; } .column { font-size: 12px; font-weight: 600; }
"""

_SCRIPT = """
const svg = document.querySelector("svg");
for (const node of svg.querySelectorAll(".node")) {
  node.addEventListener("mouseenter", () => {
    svg.classList.add("pointed"); node.classList.add("on");
    for (const edge of svg.querySelectorAll(".edge"))
      if (edge.dataset.s === node.dataset.n || edge.dataset.t === node.dataset.n) {
        edge.classList.add("on");
        for (const end of [edge.dataset.s, edge.dataset.t]) svg.querySelector(`[data-n="${CSS.escape(end)}"]`).classList.add("on");
      }
  });
  node.addEventListener("mouseleave", () => {
    svg.classList.remove("pointed");
    for (const on of svg.querySelectorAll(".on")) on.classList.remove("on");
  });
}
"""


def page(nodes: list[NodeRow], edges: list[EdgeRow], meta: CircuitMeta, *, most_edges: int) -> str:
    """Makes the page's HTML. What is drawn is said on it, and what is left out."""
    shown, drawn = choose(nodes, edges, most_edges)
    notes = meta.annotations or {}
    settings = {name: value for name, value in meta.items() if name != "annotations"}
    about = (
        f"{counted(len(nodes), 'node')} and {counted(len(edges), 'edge')}; drawn: {counted(len(shown), 'node')} and the "
        f"{counted(len(drawn), 'strongest edge')}. "
        f"Effects are corrupt − clean, mean over {_prompts(meta)}, of {_metric(meta)}. "
        "Circles are latents, squares what a dictionary does not reconstruct. Point at a node to see its edges."
    )
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(_title(meta))}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(_title(meta))}</h1><p>{html.escape(about)}</p>{_legend()}",
            drawing(nodes, edges, meta, most_edges=most_edges),
            '<div class="tables">',
            _table("Strongest nodes", ["node", "effect", ""], _node_cells(nodes, notes), 1),
            _table("Strongest edges", ["from", "to", "weight"], _edge_cells(edges), 2),
            "</div><details><summary>Settings</summary>",
            f"<pre>{html.escape(json.dumps(settings, indent=1, ensure_ascii=False))}</pre></details>",
            f"<script>{_SCRIPT}</script></body></html>",
        ]
    )


def _title(meta: CircuitMeta) -> str:
    return meta.title or f"A circuit of {meta.model or 'a model'}"


def _prompts(meta: CircuitMeta) -> str:
    return "prompts" if meta.prompts is None else counted(meta.prompts, "prompt")


def _metric(meta: CircuitMeta) -> str:
    if meta.clean_metric is None or meta.total_effect is None:  # a circuit from elsewhere
        return f"the metric {meta.metric or 'that they were found with'}"
    return f"the metric {meta.metric or '?'}: clean {meta.clean_metric:z.3f}, total effect {meta.total_effect:+z.3f}"


def _legend() -> str:
    return (
        f'<p><span style="color:{POSITIVE}">■</span> raises the metric from clean to corrupt&nbsp;&nbsp; '
        f'<span style="color:{NEGATIVE}">■</span> lowers it; stronger colour and width, larger effect.</p>'
    )


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


def _node_cells(nodes: list[NodeRow], notes: dict[str, str]) -> list[list[str]]:
    return [[node.node, f"{node.effect:+z.4f}", note_of(notes, node)] for node in nodes[:25]]


def _edge_cells(edges: list[EdgeRow]) -> list[list[str]]:
    return [[edge.source, edge.target, f"{edge.weight:+z.4f}"] for edge in edges[:25]]


def _table(title: str, columns: list[str], rows: list[list[str]], number: int) -> str:
    cell = lambda i, text: f'<td class="{_class(text) if i == number else ""}">{html.escape(text)}</td>'
    body = "".join("<tr>" + "".join(cell(i, text) for i, text in enumerate(row)) + "</tr>" for row in rows)
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    return f"<div><h2>{title}</h2><table><tr>{head}</tr>{body}</table></div>"


def _class(number: str) -> str:
    return "number up" if number.startswith("+") else "number down"
