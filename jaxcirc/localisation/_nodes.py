"""Which receivers are whose: a head reads through its query, its key and its value, an MLP through one input."""

import numpy as np
from jaxtyping import Bool

from ..graph import ComponentGraph


def reads_of(graph: ComponentGraph) -> Bool[np.ndarray, "sender receiver"]:
    """Says through which receivers each sender's own component reads: none for embeddings and biases, which are given."""
    shared_by = graph.n_heads // graph.n_kv_heads
    owner = lambda slot: {
        "q": ("head", slot.layer, slot.head),
        "mlp": ("mlp", slot.layer, -1),
        **{part: ("head", slot.layer, slot.head * shared_by) for part in "kv"},
    }.get(slot.part)
    index = {tuple(slot): i for i, slot in enumerate(graph.sender_slots)}
    reads = np.zeros((len(graph.senders), len(graph.receivers)), bool)
    for j, slot in enumerate(graph.receiver_slots):
        if (found := owner(slot)) is not None:
            heads = shared_by if slot.part in ("k", "v") else 1
            first = index[found]
            reads[first : first + heads, j] = True
    return reads
