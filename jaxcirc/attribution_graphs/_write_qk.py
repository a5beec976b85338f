"""What raises attention scores, as graph files have it: pairs of nodes, and nodes that stand in no graph but in such pairs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ._qk import QKAttribution
from ._table import Table, TOKEN


MARGINAL = 10  # nodes of the query and of the key that are listed by themselves: as many as Neuronpedia has


class Traced(NamedTuple):
    """By id of a node what `qk_tracing_results` it has; and, by id, the nodes that these name, each by its table and row."""

    results: dict[str, dict[str, Any]]
    named: dict[str, tuple[Table, int]]


def traced(attributions: Mapping[str, tuple[QKAttribution, list[str]]]) -> Traced:
    """Makes what a file holds of attributions, each with the ids of its nodes, by id of the node that has it."""
    results, named = {}, {}
    for name, (found, ids) in attributions.items():
        pairs = [
            [ids[query], ids[key], value]
            for (query, key), value in zip(found.pairs.tolist(), found.values.tolist(), strict=True)
        ]
        sides = {"top_q": _largest(found.of_queries), "top_k": _largest(found.of_keys)}
        results[name] = {
            "pair_wise_contributors": pairs,
            **{
                f"{side}_marginal_contributors": [[ids[node], value] for node, value in largest]
                for side, largest in sides.items()
            },
        }
        nodes = {*found.pairs.reshape(-1).tolist(), *(node for largest in sides.values() for node, _ in largest)}
        named |= {ids[node]: (found.records, node) for node in nodes}
    return Traced(results, named)


def _largest(values: Float[np.ndarray, " node"]) -> list[tuple[int, float]]:
    """The nodes of the largest values by size, the largest first, with these."""
    order = np.argsort(-np.abs(values), kind="stable")[:MARGINAL]
    return [(int(node), float(values[node])) for node in order if values[node] != 0]


def same_prompt(one: Table, other: Table) -> bool:
    """Whether two tables are of the same tokens at the same positions."""
    tokens = [
        dict(zip(table.pos[of].tolist(), table.unit[of].tolist(), strict=True))
        for table in (one, other)
        for of in [table.kind == TOKEN]
    ]
    return tokens[0] == tokens[1]
