"""Masks of edges, and their names: `m0->logits`, and of a graph with positions `m0->logits@5`, the edge at that position."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from .._checks import check_list


class Named(NamedTuple):
    """The edges of a graph and the names of their ends."""

    edges: Bool[np.ndarray, "*position sender receiver"]
    senders: tuple[str, ...]
    receivers: tuple[str, ...]

    @property
    def at_one_position(self) -> "Named":
        return self if self.edges.ndim == 2 else self._replace(edges=self.edges[0])

    def name(self, sender: int, receiver: int) -> str:
        return f"{self.senders[sender]}->{self.receivers[receiver]}"


def mask_of_names(
    named: Named, names: Any, edge: Callable[[str], tuple[int, int]]
) -> Bool[np.ndarray, "*position sender receiver"]:
    """The edges of these names, whose ends `edge` finds. **Raises:** `TypeError` for no list, `ValueError` for a name that is none."""
    kept = np.zeros(named.edges.shape, bool)
    for name in check_list("ComponentGraph.mask: edges", "edges", names):
        ends, at, position = name.partition("@") if isinstance(name, str) else (name, "", "")
        kept[(_number(named, name, position) if at else ..., *edge(ends))] = True
    return kept


def names_of_mask(named: Named, mask: Any) -> list[str]:
    """The names of the edges in a mask, or of all. **Raises:** as `check_mask`."""
    one = named.at_one_position
    if mask is None or np.shape(mask) == one.edges.shape:
        kept = one.edges if mask is None else check_mask("ComponentGraph.edge_names: mask", mask, one)
        return [one.name(i, j) for i, j in np.argwhere(kept).tolist()]
    kept = check_mask("ComponentGraph.edge_names: mask", mask, named)
    return [f"{named.name(i, j)}@{at}" for i, j, at in np.argwhere(np.moveaxis(kept, 0, -1)).tolist()]


def check_mask(name: str, mask: Any, named: Named) -> Bool[np.ndarray, "..."]:
    """A mask of these edges as an array.

    **Raises:** `TypeError` for what holds no booleans; `ValueError` for another shape, or for what is kept where there is no edge.
    """
    found, edges = np.asarray(mask), named.edges
    if found.dtype != bool:
        raise TypeError(f"{name}: expected booleans, True for each edge that is kept, got dtype {found.dtype}.")
    if found.shape != edges.shape:
        axes = "[sender receiver]" if edges.ndim == 2 else "[position sender receiver]"
        raise ValueError(f"{name}: expected a mask {axes}, here {list(edges.shape)}, got {list(found.shape)}.")
    for *_, i, j in np.argwhere(found & ~edges)[:1].tolist():
        raise ValueError(
            f"{name}: there is no edge {named.name(i, j)}, and it is kept. Keep edges of the graph alone: mask & graph.edges."
        )
    return found


def _number(named: Named, name: str, position: str) -> int:
    """The position of a name. **Raises:** `ValueError` where the graph has it not."""
    there = len(named.edges) if named.edges.ndim == 3 else 0
    if not (position.isdecimal() and int(position) < there):
        have = f"positions 0 to {there - 1}" if there else "no positions"
        raise ValueError(f"There is no edge {name!r}: the graph has {have}.")
    return int(position)
