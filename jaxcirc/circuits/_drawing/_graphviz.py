"""A circuit for Graphviz."""

from typing import TYPE_CHECKING

from ..._figures import NEGATIVE, POSITIVE
from ...explorer import short
from .._rows import EdgeRow, METRIC, NodeRow


if TYPE_CHECKING:
    import graphviz


def graphviz_of(nodes: list[NodeRow], edges: list[EdgeRow], *, most_edges: int) -> "graphviz.Digraph":
    """Makes a `graphviz.Digraph` of the strongest edges and the nodes that they touch, with one rank a site.

    **Raises:** `ImportError` without the `graphviz` package.
    """
    try:
        import graphviz
    except ImportError:
        raise ImportError(
            "Drawing with Graphviz takes the graphviz package: pip install 'jaxcirc[graphviz]'."
        ) from None
    drawn = edges[:most_edges]
    touched = {edge.source for edge in drawn} | {edge.target for edge in drawn}
    strongest = max((abs(edge.weight) for edge in drawn), default=1.0)
    number = {node.node: f"n{i}" for i, node in enumerate(nodes)} | {METRIC: METRIC}  # Graphviz reads colons as ports
    graph = graphviz.Digraph("circuit", graph_attr={"rankdir": "BT"}, node_attr={"fontsize": "10"})
    for site in dict.fromkeys(node.site for node in nodes):
        rank = graphviz.Digraph(graph_attr={"rank": "same"})
        for node in nodes:
            if node.site == site and node.node in touched:
                shape = "box" if node.kind == "error" else "ellipse"
                rank.node(number[node.node], f"{short(site)} / {node.label}\n{node.effect:+z.3f}", shape=shape)
        graph.subgraph(rank)
    if METRIC in touched:
        graph.node(METRIC)
    for edge in drawn:
        colour = POSITIVE if edge.weight > 0 else NEGATIVE
        width = f"{0.5 + 4 * abs(edge.weight) / strongest:.2f}"
        graph.edge(
            number[edge.source], number[edge.target], color=colour, penwidth=width, tooltip=f"{edge.weight:+z.4f}"
        )
    return graph
