"""What a page shows of a circuit, as a static figure: its strongest edges, and the nodes at their ends."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._figures import headline, NEGATIVE, new_figure, POSITIVE, saved, shortened, shown, signed, sizes, SMALL
from .._words import counted
from ._description import check_ends, Description, Edge, Node, SHAPES
from ._layout import Layout, layout, RADIUS
from ._routes import routes


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SLOT, LARGEST = 0.3, (13.0, 11.0)  # inches of a slot, and of the drawing at most
OTHERS = 60  # of the strongest nodes are drawn, whether an edge that is drawn touches them or not
MARKS = {
    "circle": "o",
    "hex": "h",
    "square": "s",
    "square_pin": "p",
    "triangle": "^",
    "inverted_triangle": "v",
    "plus": "P",
    "diamond": "D",
    "star": "*",
}


def figure_of(described: Description, target: Path | None, most_edges: int) -> "Figure":
    """Draws the `most_edges` strongest edges, the nodes that they touch, and the strongest others; rows, places and ways are the page's.

    The figure is also written to `target`, if there is one.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.collections import LineCollection

    check_ends("figure", described.nodes, described.edges)
    nodes, edges = _chosen(described, most_edges)
    places = layout([node.row for node in nodes], [node.pos for node in nodes], described.rows)
    slot = min(SLOT, LARGEST[0] / max(places.width, 1), LARGEST[1] / max(places.height, 1))
    size = max(places.width * slot + 2.0, 4.0), max(places.height * slot + 1.0, 2.0)
    figure, [axes] = new_figure(1, size, title=_title(described, nodes, edges))
    axes.set_xlim(0, max(places.width, 1))
    axes.set_ylim(0, max(places.height, 1))
    axes.set_aspect("equal")
    _label(axes, described, places, slot)
    number = {node.name: i for i, node in enumerate(nodes)}
    ends = np.array([(number[edge.source], number[edge.target]) for edge in edges], int).reshape(-1, 2)
    found, weights = routes(places, ends), np.array([edge.weight for edge in edges])
    share = np.array([edge.size for edge in edges])
    share /= share.max(initial=0) or 1
    lines = LineCollection(
        list(found.points[::-1]),  # the strongest on top
        colors=[POSITIVE if weight > 0 else NEGATIVE for weight in weights[::-1]],
        linewidths=(0.5 + 3 * share[::-1]) * slot / SLOT,
        alpha=(0.25 + 0.6 * share[::-1] ** 0.5) if len(edges) else None,
        zorder=1,
    )
    axes.add_collection(lines)
    values = np.array([node.value for node in nodes], float)
    scale = (signed if described.signed else sizes)(described.value)
    colours = ScalarMappable(scale.norm(values), scale.colours)
    _draw_nodes(axes, nodes, places, values, colours, slot)
    bar = figure.colorbar(colours, ax=axes, fraction=0.03, pad=0.02, aspect=30, shrink=0.7)
    bar.set_label(scale.label, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL)
    return saved(figure, target)


def _chosen(described: Description, most_edges: int) -> tuple[list[Node], list[Edge]]:
    edges = sorted(described.edges, key=lambda edge: -edge.size)[:most_edges]
    touched = {edge.source for edge in edges} | {edge.target for edge in edges}
    size = lambda node: math.inf if math.isnan(node.value) else abs(node.value)
    nodes = sorted(described.nodes, key=lambda node: -size(node))
    return [node for i, node in enumerate(nodes) if node.name in touched or i < OTHERS], edges


def _title(described: Description, nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    facts, all_nodes, all_edges = described.facts, len(described.nodes), len(described.edges)
    prompts = facts.get("prompts", "")
    what = headline(
        described.title,
        method=facts.get("method"),
        metric=facts.get("metric"),
        prompts=int(prompts) if prompts.isdecimal() else None,
    )
    by_influence = any(edge.influence is not None for edge in edges)
    parts = [
        f"{len(edges)} {'most influential' if by_influence else 'strongest'} of {counted(all_edges, 'edge')}"
        if len(edges) < all_edges
        else counted(all_edges, "edge"),
        f"{len(nodes)} of {counted(all_nodes, 'node')}" if len(nodes) < all_nodes else counted(all_nodes, "node"),
    ]
    wider = "more influence" if by_influence else f"a larger {described.weight}"
    return f"{what}\n{', '.join(parts)}; edges red positive, blue negative, wider with {wider}"


def _label(axes: "Axes", described: Description, places: Layout, slot: float) -> None:
    """Writes rows to the left and positions above, on bands."""
    for row in places.rows:
        axes.axhspan(row.low, row.high, color="#f3f4f6", zorder=0, linewidth=0)
    axes.set_yticks([(row.low + row.high) / 2 for row in places.rows], [shown(str(row.label)) for row in places.rows])
    axes.set_xticks([(column.low + column.high) / 2 for column in places.columns])
    letters = [max(int((column.high - column.low) * slot * 72 / (0.62 * SMALL)), 3) for column in places.columns]
    names = [_name(column.label, described.tokens, most) for column, most in zip(places.columns, letters, strict=True)]
    axes.set_xticklabels(names, fontsize=SMALL, parse_math=False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=SMALL)
    for side in axes.spines.values():
        side.set_visible(False)


def _name(pos: str | int | None, tokens: Sequence[str] | None, most: int) -> str:
    if not isinstance(pos, int):
        return "all positions" if tokens is None else "–"
    token = tokens[pos].strip(" ") if tokens is not None and pos < len(tokens) else ""
    return f"{pos}\n{shortened(token, most)}" if token else str(pos)


def _draw_nodes(axes: "Axes", nodes: Sequence[Node], places: Layout, values, colours, slot: float) -> None:
    by_kind: dict[str, list[int]] = defaultdict(list)
    for i, node in enumerate(nodes):
        by_kind[node.kind].append(i)
    fills = colours.to_rgba(np.nan_to_num(values))
    points = 2 * RADIUS * slot * 72  # across a node
    for kind, some in by_kind.items():
        at = places.places[some]
        axes.scatter(
            at[:, 0],
            at[:, 1],
            s=points**2,
            c=fills[some],
            marker=MARKS[SHAPES[kind]],
            edgecolors="#52606d",
            linewidths=0.5,
            zorder=2,
            label=kind,
        )
    if points >= 9:
        for node, (x, y), fill in zip(nodes, places.places, fills, strict=True):
            dark = float(fill[:3] @ (0.299, 0.587, 0.114)) < 0.5
            letters = shortened(node.label, 6)
            axes.text(
                *(x, y, letters),
                ha="center",
                va="center_baseline",
                fontsize=min(points * 0.36, points * 1.5 / max(len(letters), 1)),
                color="#ffffff" if dark else "#1f2933",
                parse_math=False,
                zorder=3,
            )
    axes.legend(
        *(axes.get_legend_handles_labels()),
        loc="upper left",
        bbox_to_anchor=(0, -0.01),
        ncols=8,
        fontsize=SMALL,
        frameon=False,
        markerscale=min(1.0, 6 / points),
        handletextpad=0.1,
        columnspacing=0.8,
    )
