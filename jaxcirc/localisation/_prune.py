"""What is left of a circuit when edges that lead nowhere are dropped."""

import numpy as np
from jaxtyping import Array, Bool

from ..graph import ComponentGraph
from ._given import check_graph, check_mask_of


def prune(
    graph: ComponentGraph, mask: Bool[Array | np.ndarray, "sender receiver"]
) -> Bool[np.ndarray, "sender receiver"]:
    """Drops edges that no path from the embedding to the logits goes through, again and again until nothing changes.

    A head or an MLP is out that has no edge into it, by query, key or value, or none out of it; and with it all its edges. Embeddings and
    biases have no edges into them and need none, the logits are always there.

    **Arguments:** - `mask` `[sender receiver]`: the edges of a circuit.

    **Returns:** the edges that are left.

    **Raises:** `ValueError` for a mask of another graph, or a graph with positions.

    >>> graph = jc.component_graph(model)
    >>> kept = jc.localisation.prune(graph, graph.mask(["embed->m0", "m0->logits", "embed->a1.h0.q"]))
    >>> graph.edge_names(kept)
    ['embed->m0', 'm0->logits']

    **Reference:** Hanna et al. 2024, arXiv 2403.17806; the pruning of Mueller et al. 2025, arXiv 2504.13151.
    """
    check_graph("prune", graph)
    kept = check_mask_of("prune: mask", graph, mask)
    return pruned(kept, graph.reads)


def pruned(
    kept: Bool[np.ndarray, "sender receiver"], reads: Bool[np.ndarray, "sender receiver"]
) -> Bool[np.ndarray, "sender receiver"]:
    """The same with `reads`, the receivers of each sender, at hand."""
    given, always = ~reads.any(axis=1), ~reads.any(axis=0)
    while True:
        writes, fed = kept.any(axis=1), kept.any(axis=0)
        there = np.asarray(writes & (given | (reads & fed).any(axis=1)))
        left = kept & there[:, None] & (always | (reads & there[:, None]).any(0))
        if (left == kept).all():
            return left
        kept = left


def nodes_in(kept: Bool[np.ndarray, "sender receiver"]) -> Bool[np.ndarray, " sender"]:
    """The senders of a pruned circuit."""
    return np.asarray(kept.any(axis=1))
