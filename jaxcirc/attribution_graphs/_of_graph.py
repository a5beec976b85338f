"""A graph's nodes as those of its prompt, linearised anew."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .._checks import check_kind
from ..models import Transformer
from ._checked import checked_dictionaries
from ._given import Transcoders
from ._graph import AttributionGraph, check_node
from ._padding import Real
from ._prompt import linearised_prompt, Prompt
from ._select import UNSELECTED
from ._table import ERROR, LATENT, LOGIT, Table
from ._targets import check_targets


@dataclasses.dataclass(frozen=True)
class OfGraph:
    """A graph, its prompt, and of each node that was computed the nodes of the prompt whose sum it is."""

    graph: AttributionGraph
    prompt: Prompt
    parts: list[list[int]]

    def sources(self, nodes: Int[np.ndarray, " n"]) -> list[list[int]]:
        """Of kept nodes, by their place in the graph, those of the prompt."""
        return [self.parts[node] for node in self.graph.kept[nodes]]

    def targets(self, nodes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """The same of nodes that have a row, each of which is one."""
        return np.array([each for (each,) in self.sources(nodes)], int)

    def weights(self, targets: Int[np.ndarray, " n"], sources: Int[np.ndarray, " n"]) -> np.ndarray:
        """The edges between kept nodes, as they were computed: also those that pruning left out."""
        whole, kept = self.graph.whole, self.graph.kept
        return whole.rows[np.searchsorted(whole.targets, kept[targets]), kept[sources]]

    def rows(self) -> Float[np.ndarray, "target node"]:
        """All edges between kept nodes as they were computed."""
        whole, kept = self.graph.whole, self.graph.kept
        return whole.rows[np.searchsorted(whole.targets, kept[self.graph.targets])][:, kept]


def of_graph(verb: str, graph: AttributionGraph, model: Transformer, transcoders: Transcoders) -> OfGraph:
    """Linearises a graph's prompt, and finds the graph's nodes there.

    **Raises:** `ValueError` for another model or other dictionaries, for a graph that is not of a prompt's own run, and for one that does
    not hold the directions that it explains.
    """
    check_kind(f"{verb}: graph", graph, AttributionGraph, "a graph, as jc.attribution_graph gives one")
    graph.check_model(model)
    dictionaries = checked_dictionaries(verb, model, transcoders)
    whole, tokens = graph.whole, np.asarray(graph.meta["tokens"], np.int32)
    real = Real(*graph.meta.get("real", (0, len(tokens))))
    targets = whole.directions
    if targets is None:
        targets = whole.table.unit[whole.table.kind == LOGIT]
        of_json = (targets >= len(model.b_U)).any()  # where directions are numbered behind the tokens
        if of_json or whole.meta.get("targets") is not None:
            why = "JSON does not hold them" if of_json else "its file is from before graphs kept them"
            raise ValueError(
                f"{verb}: the graph explains directions, and {why}. Compute it anew by jc.attribution_graph, and keep it by graph.save."
            )
        check_targets(model, targets, real.end - 1)
    prompt = linearised_prompt(model, dictionaries, tokens, real, targets)
    return OfGraph(graph, prompt, _parts(verb, whole.table, prompt.table.moved(real.first)))


def _parts(verb: str, table: Table, of_prompt: Table) -> list[list[int]]:
    """Of each node of a graph the nodes of the prompt that it is the sum of."""
    where = {key: number for number, key in enumerate(_keys(of_prompt))}
    keys = _keys(table)
    taken = {key for key in keys if key[0] == LATENT}
    rest: dict[tuple[str, int], list[int]] = {}
    for key, number in where.items():
        if key[0] == LATENT and key not in taken:
            rest.setdefault(key[1:3], []).append(number)
    found = []
    for key in keys:
        merged = key[0] == ERROR and key[3] == UNSELECTED
        if not merged and key not in where:
            raise ValueError(
                f"{verb}: the graph's node {key[3]} at `{key[1]}`, position {key[2]}, is not among those of its prompt with these "
                "dictionaries. Give the transcoders that it was made with."
            )
        found.append(rest.get(key[1:3], []) if merged else [where[key]])
    return found


def _keys(table: Table) -> list[tuple[int, str, int, int]]:
    """By what a node is known: its kind, its site, position and unit."""
    sites = [table.sites[number] for number in table.site]
    return list(zip(table.kind.tolist(), sites, table.pos.tolist(), table.unit.tolist(), strict=True))


def check_edges(verb: str, graph: AttributionGraph, edges: Any) -> Int[np.ndarray, "edge 2"]:
    """Edges as numbers of nodes, target and source. **Raises:** `ValueError` for nodes that are not there, and targets without a row."""
    given = np.asarray(edges)
    if given.ndim != 2 or given.shape[1] != 2 or not len(given) or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"{verb}: edges are pairs (target, source) of rows of graph.nodes; got {edges!r}.")
    for node in given.reshape(-1):
        check_node(verb, graph, node)
    if len(without := np.setdiff1d(given[:, 0], graph.targets)):
        kind = graph.nodes["kind"][without[0]]
        raise ValueError(
            f"{verb}: node {without[0]} is of kind {kind}, and nothing leads into it. An edge is (target, source)."
        )
    return given
