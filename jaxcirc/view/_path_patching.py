"""Path patching, drawn."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float

from .._checks import check_kind
from .._files import write_text, writing_file
from .._words import counted
from ..graph import ComponentGraph
from ._svg import check_svg
from .plot import document, heat_map


Sweep = Float[Array | np.ndarray, "sender batch"]


def draw_path_patching(sweeps: Mapping[str, Sweep], graph: ComponentGraph, path: str | Path) -> None:
    """Draws what every sender of the component graph does along a path as heat maps in an SVG file, layers by heads and MLP: a panel a
    sweep, means over prompts. Colours are symmetric around 0, no change, and the same in all panels; the embedding stands below each.

    **Arguments:** - `sweeps`: title and changes of the metric `[sender batch]`: what `jc.path_patch` gives without `senders`, less the
    clean metric. - `graph`: whose senders they are.

    **Raises:** `ValueError` for another number of senders, and a file that is not named as SVG.

    >>> prompts = jc.data.ioi(tokenizer, 4, flip=("IO",), seed=0)
    >>> found = jc.path_patch(model, prompts.clean, prompts.corrupt, prompts.metric(), receivers=["logits"])
    >>> clean = jax.vmap(lambda tokens, metric: metric(jc.run(model, tokens)[0]))(prompts.clean, prompts.metric())
    >>> jc.draw_path_patching({"to the logits": found - clean}, jc.component_graph(model), "path-patching.svg")
    """
    check_svg(path)
    check_kind("draw_path_patching: graph", graph, ComponentGraph, "a graph as jc.component_graph(model) gives one")
    check_kind("draw_path_patching: sweeps", sweeps, Mapping, "titles and the changes of each sweep")
    if not sweeps:
        raise ValueError("draw_path_patching: sweeps is empty. Give the changes of one, by its title.")
    given = {title: np.asarray(changes) for title, changes in sweeps.items()}
    for title, changes in given.items():
        if changes.ndim != 2 or len(changes) != len(graph.senders):
            raise ValueError(
                f"draw_path_patching: expected changes [sender batch] of all {len(graph.senders)} senders of the graph for {title!r}, got "
                f"shape {changes.shape}."
            )
    means = {title: changes.mean(1) for title, changes in given.items()}
    most = max(float(np.abs(mean).max()) for mean in means.values())
    names = _columns(graph)
    panels = [
        heat_map(
            _table(graph, mean, names).tolist(),
            label="head, or other sender",
            side="layer",
            title=title,
            note=f"{_embeddings(graph, mean)}; mean of {counted(given[title].shape[1], 'prompt')}",
            unit="change",
            columns=names,
            most=most,
        )
        for title, mean in means.items()
    ]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title="Path patching: change of the metric by sender"))


def _columns(graph: ComponentGraph) -> list[str]:
    """Names the senders of a layer."""
    others = [("bias", graph.biases), ("mlp", graph.has_mlp), ("mlp bias", graph.biases and graph.has_mlp)]
    return [*map(str, range(graph.n_heads)), *(name for name, there in others if there)]


def _table(
    graph: ComponentGraph, mean: Float[np.ndarray, " sender"], names: list[str]
) -> Float[np.ndarray, "layer column"]:
    table = np.zeros((graph.n_layers, len(names)))
    for slot, value in zip(graph.sender_slots, mean, strict=True):
        if slot.layer >= 0:
            column = slot.head if slot.part == "head" else names.index(slot.part.replace("_", " "))
            table[slot.layer, column] = value
    return table


def _embeddings(graph: ComponentGraph, mean: Float[np.ndarray, " sender"]) -> str:
    shown = zip(graph.sender_slots, mean, strict=True)
    return ", ".join(f"{slot.name.replace('_', ' ')} {value:+z.2f}" for slot, value in shown if slot.layer < 0)
