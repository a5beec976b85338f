"""A circuit for NetworkX, and in the format that most other programs for graphs read."""

from pathlib import Path
from typing import Any

from ..._files import writing_file
from .._meta import CircuitMeta
from .._rows import EdgeRow, METRIC, NodeRow


def networkx_of(nodes: list[NodeRow], edges: list[EdgeRow], meta: CircuitMeta) -> Any:
    """Makes a `networkx.DiGraph` with the columns of the tables as attributes.

    **Raises:** `ImportError` without the `networkx` package.
    """
    try:
        import networkx
    except ImportError:
        raise ImportError("A circuit as a graph takes the networkx package: pip install 'jaxcirc[networkx]'.") from None
    graph = networkx.DiGraph(**{name: meta[name] for name in ("model", "metric") if name in meta})
    graph.add_node(METRIC)
    graph.add_nodes_from((row.node, row._asdict()) for row in nodes)
    graph.add_weighted_edges_from(edges)
    return graph


def write_graphml(graph: Any, path: str | Path) -> None:
    """Writes such a graph as GraphML, which knows numbers and texts, and nothing like `None`: a node without a position has no `pos`."""
    import networkx

    for _, facts in graph.nodes(data=True):
        if facts.get("pos", 0) is None:
            del facts["pos"]
    with writing_file(path) as aside:
        networkx.write_graphml_xml(graph, aside)
