"""Masks of edges, and their names: `m0->logits`, and of a graph with positions `m0->logits@5`, the edge at that position."""

from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Bool

from .._checks import check_list


if TYPE_CHECKING:
    from ._components import ComponentGraph


def mask_of_names(graph: "ComponentGraph", names: Any) -> Bool[np.ndarray, "*position sender receiver"]:
    """The edges of these names. **Raises:** `TypeError` for no list, `ValueError` for a name that is none."""
    kept = np.zeros(graph.edges.shape, bool)
    for name in check_list("ComponentGraph.mask: edges", "edges", names):
        edge, at, position = name.partition("@") if isinstance(name, str) else (name, "", "")
        kept[(_number(graph, name, position) if at else ..., *graph.edge(edge))] = True
    return kept


def names_of_mask(graph: "ComponentGraph", mask: Any) -> list[str]:
    """The names of the edges in a mask, or of all. **Raises:** as `check_mask`."""
    one = graph.of_one_position
    if mask is None or np.shape(mask) == one.shape:
        kept = (
            one
            if mask is None
            else check_mask("ComponentGraph.edge_names: mask", mask, one, "[sender receiver]", graph)
        )
        return [_name(graph, i, j) for i, j in np.argwhere(kept).tolist()]
    kept = check_mask("ComponentGraph.edge_names: mask", mask, graph.edges, graph.axes, graph)
    return [f"{_name(graph, i, j)}@{at}" for i, j, at in np.argwhere(np.moveaxis(kept, 0, -1)).tolist()]


def check_mask(
    name: str, mask: Any, edges: Bool[np.ndarray, "..."], axes: str, graph: "ComponentGraph"
) -> Bool[np.ndarray, "..."]:
    """A mask of these edges of the graph as an array.

    **Raises:** `TypeError` for what holds no booleans; `ValueError` for another shape, or for what is kept where there is no edge.
    """
    found = np.asarray(mask)
    if found.dtype != bool:
        raise TypeError(f"{name}: expected booleans, True for each edge that is kept, got dtype {found.dtype}.")
    if found.shape != edges.shape:
        raise ValueError(f"{name}: expected a mask {axes}, here {list(edges.shape)}, got {list(found.shape)}.")
    for *_, i, j in np.argwhere(found & ~edges)[:1].tolist():
        raise ValueError(
            f"{name}: there is no edge {_name(graph, i, j)}, and it is kept. Keep edges of the graph alone: mask & graph.edges."
        )
    return found


def _name(graph: "ComponentGraph", sender: int, receiver: int) -> str:
    return f"{graph.senders[sender]}->{graph.receivers[receiver]}"


def _number(graph: "ComponentGraph", name: str, position: str) -> int:
    """The position of a name. **Raises:** `ValueError` where the graph has it not."""
    there = graph.n_positions or 0
    if not (position.isdecimal() and int(position) < there):
        have = f"positions 0 to {there - 1}" if there else "no positions"
        raise ValueError(f"There is no edge {name!r}: the graph has {have}.")
    return int(position)
