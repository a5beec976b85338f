"""The benchmark's names of nodes and edges, and the numbers that it knows a model by."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..graph import ComponentGraph


CONFIG = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")


def sender_names(graph: ComponentGraph) -> list[str]:
    """`input`, `a0.h1`, `m0`, in the graph's order."""
    return ["input" if slot.part == "embed" else slot.name for slot in graph.sender_slots]


def receiver_names(graph: ComponentGraph) -> list[str]:
    """`a0.h1<q>`, `m0`, `logits`, in the graph's order."""
    of_head = lambda slot: f"a{slot.layer}.h{slot.head}<{slot.part}>"
    return [of_head(slot) if slot.part in ("q", "k", "v") else slot.name for slot in graph.receiver_slots]


def config_of(graph: ComponentGraph, d_model: int) -> dict[str, Any]:
    """What a file says of the model."""
    return dict(zip(CONFIG, (graph.n_layers, graph.n_heads, graph.parallel, d_model), strict=True))


def graph_of(config: Any, path: Path) -> tuple[ComponentGraph, int]:
    """Makes the graph of the model that a file is of, and gives its width. **Raises:** `ValueError` for numbers that no model has."""
    missing = [name for name in CONFIG if name not in config] if isinstance(config, Mapping) else None
    if missing is None or missing:
        lacks = f"lacks {', '.join(missing)} in its cfg" if missing else "has no cfg"
        raise ValueError(f"{path} {lacks}. Expected a file of edge scores: cfg with {', '.join(CONFIG)}.")
    for name in ("n_layers", "n_heads", "d_model"):
        value = config[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{path}: cfg: {name} must be a whole number of at least 1, got {value!r}.")
    graph = ComponentGraph(
        n_layers=config["n_layers"],
        n_heads=config["n_heads"],
        n_kv_heads=config["n_heads"],
        has_mlp=True,
        parallel=bool(config["parallel_attn_mlp"]),
        embeddings="tokens",
    )
    return graph, config["d_model"]
