"""The page: one file that opens anywhere, with its data as JSON, its drawing and its script."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import write_text, writing_file
from ._description import check_ends, Description, Edge, Node, SHAPES
from ._layout import Band, Layout, layout, RADIUS
from ._plot import LEVELS, plot_item, scripts
from ._routes import routes
from ._serve import Live


FIRST_NODES, FIRST_EDGES = 60, 120  # how many of the strongest are shown at first
BARE = 0.04  # the share of nodes that may have no edge there
MARKS = {
    "circle": "●",
    "hex": "⬢",
    "square": "■",
    "square_pin": "◈",
    "triangle": "▲",
    "plus": "✚",
    "diamond": "◆",
    "inverted_triangle": "▼",
    "star": "★",
}
_HERE = Path(__file__).parent


def write_page(path: str | Path, described: Description) -> None:
    """Writes the page of what is described, whole or not at all."""
    text = page(described)
    with writing_file(path) as aside:
        write_text(aside, text)


def page(described: Description, live: Live | None = None) -> str:
    """Makes the page's HTML; with `live`, one for a server that has the model.

    **Raises:** `ValueError` if two nodes have one name, or an edge ends at none of them.
    """
    nodes = sorted(described.nodes, key=lambda node: (node.counted, -_size(node.value)))
    edges = sorted(described.edges, key=lambda edge: -abs(edge.weight))
    check_ends("page", nodes, edges)
    number = {node.name: i for i, node in enumerate(nodes)}
    places = layout([node.row for node in nodes], [node.pos for node in nodes], described.rows)
    data = _data(described, nodes, edges, number, places)
    data["live"] = None if live is None else {"words": live.words, "strength": live.strength}
    parts = {
        "title": _escaped(described.title),
        "css": _file("page.css"),
        "data": embedded(data),
        "plot": embedded(plot_item(places)),
        "bokeh": scripts(),
        "js": _file("page.js"),
    }
    return re.sub("@(" + "|".join(parts) + ")@", lambda found: parts[found[1]], _file("page.html"))


def embedded(value: Any) -> str:
    """JSON that stands in HTML: without a character that could end its element or, read as a script, a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    # A surrogate by itself, as a tokenizer's half of a letter may leave one, is no text that a file can hold.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def first_thresholds(nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[float, float]:
    """Thresholds of nodes and of edges at which the strongest few are shown, and not more than can be read; 0 where all are few.

    Of the strongest nodes as many are shown as nearly all have an edge among the strongest edges: a node without one looks like a fault.
    """
    sizes = sorted((_size(node.value) for node in nodes if node.counted), reverse=True)
    by_weight = sorted(edges, key=lambda edge: -abs(edge.weight))
    found: list[tuple[float, float, float]] = []
    for most in range(FIRST_NODES, FIRST_NODES // 2 - 1, -5):
        node = sizes[most - 1] if len(sizes) > most else 0.0
        node = node if math.isfinite(node) else 0.0
        shown = {each.name for each in nodes if _size(each.value) >= node}
        by_weight = [each for each in by_weight if {each.source, each.target} <= shown]
        joined = {end for each in by_weight[:FIRST_EDGES] for end in (each.source, each.target)}
        edge = abs(by_weight[FIRST_EDGES - 1].weight) if len(by_weight) > FIRST_EDGES else 0.0
        found.append((1 - len(joined) / max(len(shown), 1), node, edge))
        if found[-1][0] <= BARE:
            return node, edge
    return min(found, key=lambda each: each[0])[1:]


def _data(
    described: Description, nodes: Sequence[Node], edges: Sequence[Edge], number: dict[str, int], places: Layout
) -> dict[str, Any]:
    ends = np.array([(number[edge.source], number[edge.target]) for edge in edges], int).reshape(-1, 2)
    found = routes(places, ends)
    points = np.round(found.points * 100).astype(int)
    flat = [
        corner for way, count in zip(points.tolist(), found.corners.tolist(), strict=True) for corner in way[:count]
    ]
    abouts = [dict(node.about) for node in nodes]
    node_threshold, edge_threshold = first_thresholds(nodes, edges)
    kinds = {node.kind: SHAPES[node.kind] for node in nodes}
    return {
        "title": described.title,
        "facts": list(described.facts.items()),
        "remarks": list(described.remarks),
        "value": described.value,
        "weight": described.weight,
        "signed": described.signed,
        "tokens": None if described.tokens is None else list(described.tokens),
        "labels": list(described.rows),
        "rows": [{"label": band.label, "low": band.low, "high": band.high} for band in places.rows],
        "columns": [_column(band, described) for band in places.columns],
        "radius": RADIUS,
        "levels": LEVELS,
        "kinds": {kind: {"shape": shape, "mark": MARKS[shape]} for kind, shape in kinds.items()},
        "first": {"node": node_threshold, "edge": edge_threshold},
        "missing": dict(described.missing),
        "settings": _plain(described.settings),
        "about": _plain(abouts),
        "nodes": {
            **{name: [getattr(node, name) for node in nodes] for name in ("name", "row", "pos", "kind", "label")},
            "value": [_number(node.value) for node in nodes],
            "counted": [int(node.counted) for node in nodes],
            "about": list(range(len(nodes))),
            "x": _rounded(places.places[:, 0]),
            "y": _rounded(places.places[:, 1]),
        },
        "edges": {
            "source": ends[:, 0].tolist(),
            "target": ends[:, 1].tolist(),
            "weight": [float(edge.weight) for edge in edges],
            "part": [edge.part for edge in edges],
            "count": found.corners.tolist(),
            "points": [x for corner in flat for x in corner],
        },
    }


def _column(band: Band, described: Description) -> dict[str, Any]:
    pos, tokens = band.label, described.tokens
    if not isinstance(pos, int):
        token = "all positions" if tokens is None else "no position"
    else:
        token = tokens[pos] if tokens is not None and pos < len(tokens) else ""
    return {"pos": pos, "token": token, "low": band.low, "high": band.high}


def _size(value: float) -> float:
    return math.inf if math.isnan(value) else abs(value)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """The same with `None` for numbers that JSON does not have, and six digits of the others."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(float(value), 3) for value in values]


def _escaped(text: str) -> str:
    return text.translate({ord(letter): f"&#{ord(letter)};" for letter in "<>&\"'"})


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
