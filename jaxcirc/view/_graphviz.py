"""A circuit for Graphviz."""

from typing import TYPE_CHECKING

from ._layout import METRIC, short


if TYPE_CHECKING:
    import graphviz
    import pandas as pd


def graphviz_of(nodes: "pd.DataFrame", edges: "pd.DataFrame", *, most_edges: int) -> "graphviz.Digraph":
    """A `graphviz.Digraph` of the strongest edges and the nodes that they touch, with one rank a site.

    **Raises:** `ImportError` without the `graphviz` package.
    """
    try:
        import graphviz
    except ImportError:
        raise ImportError(
            "Drawing with Graphviz takes the graphviz package: pip install 'jaxcirc[graphviz]'."
        ) from None
    drawn = edges.head(most_edges)
    touched = {*drawn["source"], *drawn["target"]}
    strongest = drawn["weight"].abs().max() if len(drawn) else 1.0
    number = {name: f"n{i}" for i, name in enumerate(nodes["node"])} | {
        METRIC: METRIC
    }  # Graphviz reads colons as ports
    graph = graphviz.Digraph("circuit", graph_attr={"rankdir": "BT"}, node_attr={"shape": "ellipse", "fontsize": "10"})
    for site, rows in nodes[nodes["node"].isin(touched)].groupby("site"):
        with graph.subgraph() as rank:
            rank.attr(rank="same")
            for node in rows.itertuples():
                label = f"{short(str(site))} / {'ε' if node.kind == 'error' else node.unit}\n{node.effect:+.3f}"
                rank.node(number[str(node.node)], label, shape="box" if node.kind == "error" else "ellipse")
    if METRIC in touched:
        graph.node(METRIC)
    for edge in drawn.itertuples():
        colour = "#1f6fb4" if edge.weight > 0 else "#c8432b"
        width = f"{0.5 + 4 * abs(edge.weight) / strongest:.2f}"
        graph.edge(
            number[edge.source], number[edge.target], color=colour, penwidth=width, tooltip=f"{edge.weight:+.4f}"
        )
    return graph
