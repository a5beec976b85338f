"""Path patching, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Array, Float

from .._checks import check_kind
from .._figures import (
    GREY,
    headline,
    heat_map,
    labelled,
    mean_of,
    NEGATIVE,
    new_figure,
    panel_size,
    POSITIVE,
    saved,
    signed,
    SMALL,
    written,
)
from ..graph import ComponentGraph
from ._effects import largest


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Sweep = Float[Array | np.ndarray, "sender batch"]
BARS = 12  # senders whose changes have a bar


def draw_path_patching(
    sweeps: Mapping[str, Sweep],
    graph: ComponentGraph,
    path: str | Path | None = None,
    *,
    metric: str | None = None,
) -> "Figure":
    """Draws what every sender of the component graph does along a path: for each sweep a heat map, layers by heads and MLP, means over
    prompts; and beside it the largest changes as bars, with their standard errors where there are several prompts. Red is positive and
    blue negative, symmetric about 0, no change, and the colours are the same in all panels; the embedding stands below each.

    **Arguments:** - `sweeps`: title and changes of the metric `[sender batch]`: what `jc.path_patch` gives without `senders`, less the
    clean metric. - `graph`: whose senders they are. - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`. -
    `metric`: what it is called, for the title.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for another number of senders, no prompts, and another suffix.

    >>> prompts = jc.data.ioi(tokenizer, 4, flip=("IO",), seed=0)
    >>> found = jc.path_patch(model, prompts.clean, prompts.corrupt, prompts.metric(), receivers=["logits"])
    >>> clean = jax.vmap(lambda tokens, metric: metric(jc.run(model, tokens)[0]))(prompts.clean, prompts.metric())
    >>> figure = jc.draw_path_patching({"to the logits": found - clean}, jc.component_graph(model), "path-patching.svg")
    """
    target = written("draw_path_patching", path)
    check_kind("draw_path_patching: graph", graph, ComponentGraph, "a graph as jc.component_graph(model) gives one")
    check_kind("draw_path_patching: sweeps", sweeps, Mapping, "titles and the changes of each sweep")
    if not sweeps:
        raise ValueError("draw_path_patching: sweeps is empty. Give the changes of one, by its title.")
    given = {title: np.asarray(changes).astype(np.float64) for title, changes in sweeps.items()}
    for title, changes in given.items():
        if changes.ndim != 2 or len(changes) != len(graph.senders) or not changes.shape[1]:
            raise ValueError(
                f"draw_path_patching: expected changes [sender batch] of all {len(graph.senders)} senders of the graph for {title!r}, got "
                f"shape {changes.shape}."
            )
    means = {title: changes.mean(1) for title, changes in given.items()}
    names = _columns(graph)
    size = panel_size((graph.n_layers, len(names)), None, names)
    counts = [changes.shape[1] for changes in given.values()]
    whole = headline("Path patching: change of the metric by sender", metric=metric, prompts=counts)
    figure, axes = new_figure(2 * len(given), size, title=whole)
    scale = signed("change of the metric", largest(means.values()))
    for each, (title, mean) in zip(axes[::2], means.items(), strict=True):
        note = f"{_embeddings(graph, mean)}; {mean_of(given[title].shape[1])}"
        heat_map(
            each,
            _table(graph, mean, names),
            scale,
            side="layer",
            label="head, or other sender",
            title=title,
            note=note,
            columns=names,
            missing="there is no such sender",
        )
    for each, changes in zip(axes[1::2], given.values(), strict=True):
        _bars(each, graph, changes)
    return saved(figure, target)


def _bars(axes: "Axes", graph: ComponentGraph, changes: Float[np.ndarray, "sender batch"]) -> None:
    """Draws the senders of the largest changes, the largest on top."""
    mean, n = changes.mean(1), changes.shape[1]
    order = np.argsort(-np.abs(mean), kind="stable")[:BARS]
    order = order[np.isfinite(mean[order])]
    errors = changes[order].std(1, ddof=1) / np.sqrt(n) if n > 1 else None
    colours = [POSITIVE if mean[i] > 0 else NEGATIVE for i in order]
    axes.barh(range(len(order)), mean[order], xerr=errors, color=colours, ecolor=GREY, capsize=2, height=0.7)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(order)), [graph.senders[i] for i in order], fontsize=SMALL)
    axes.set_ylim(max(len(order), 1) - 0.4, -0.6)
    labelled(
        axes,
        label="change of the metric",
        side="sender",
        title=f"the largest {len(order)}",
        note="bars: mean ± one standard error over prompts" if n > 1 else "one prompt has no standard error",
    )


def _columns(graph: ComponentGraph) -> list[str]:
    """Names the senders of a layer."""
    others = [("bias", graph.biases), ("mlp", graph.has_mlp), ("mlp bias", graph.biases and graph.has_mlp)]
    return [*map(str, range(graph.n_heads)), *(name for name, there in others if there)]


def _table(
    graph: ComponentGraph, mean: Float[np.ndarray, " sender"], names: list[str]
) -> Float[np.ndarray, "layer column"]:
    table = np.full((graph.n_layers, len(names)), np.nan)
    for slot, value in zip(graph.sender_slots, mean, strict=True):
        if slot.layer >= 0:
            column = slot.head if slot.part == "head" else names.index(slot.part.replace("_", " "))
            table[slot.layer, column] = value
    return table


def _embeddings(graph: ComponentGraph, mean: Float[np.ndarray, " sender"]) -> str:
    shown = zip(graph.sender_slots, mean, strict=True)
    return ", ".join(f"{slot.name.replace('_', ' ')} {value:+z.2f}" for slot, value in shown if slot.layer < 0)
