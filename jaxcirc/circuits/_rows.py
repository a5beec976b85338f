"""A circuit's tables, row by row and strongest first."""

from collections.abc import Mapping
from typing import Any, NamedTuple


METRIC = "metric"  # the name of the node at the end of every path


class NodeRow(NamedTuple):
    """One node: its name, the site and the latent that it is, and its effect."""

    node: str
    site: str
    unit: int
    kind: str
    pos: int | None
    effect: float

    @property
    def label(self) -> str:
        return "ε" if self.kind == "error" else str(self.unit)


class EdgeRow(NamedTuple):
    """One edge: the names of its ends and its weight."""

    source: str
    target: str
    weight: float


def node_rows(table: Any) -> list[NodeRow]:
    """Lists the rows of a data frame of nodes, the strongest effect first."""
    columns = (table[name].tolist() for name in ("node", "site", "unit", "kind", "pos", "effect"))
    missing = table["pos"].isna().tolist()
    rows = [
        NodeRow(node, site, unit, kind, None if no_pos else int(pos), effect)
        for (node, site, unit, kind, pos, effect), no_pos in zip(zip(*columns, strict=True), missing, strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row.effect))


def edge_rows(table: Any) -> list[EdgeRow]:
    """Lists the rows of a data frame of edges, the strongest weight first."""
    columns = (table[name].tolist() for name in ("source", "target", "weight"))
    return sorted((EdgeRow(*row) for row in zip(*columns, strict=True)), key=lambda row: -abs(row.weight))


def note_of(notes: Mapping[str, str], node: NodeRow) -> str:
    """Finds what is noted of a node: by its name, or else by its name without position, which stands for it at all of them."""
    return notes.get(node.node) or notes.get(node.node.removesuffix(f"@{node.pos}"), "")
