"""Activation patching, drawn."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .._checks import check_kind
from .._figures import headline, heat_map, new_figure, panel_size, saved, signed, token_names, written
from ..patching import PatchedMetrics
from ._effects import largest


if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUNS = {"denoise": "corrupt run, clean values put in", "noise": "clean run, corrupt values put in"}
UNITS = {
    "fraction": "fraction of the difference between the runs",
    "difference": "change of the metric",
}


def draw_patching(
    found: PatchedMetrics,
    path: str | Path | None = None,
    *,
    tokens: Sequence[str] | None = None,
    metric: str | None = None,
) -> "Figure":
    """Draws activation patching as heat maps, means over prompts: a panel a kind of site, layers by positions or by heads; of heads by
    positions a panel a layer; and of whole sites one panel. Red is positive and blue negative, symmetric about 0, which is the base run,
    and the colours are the same in all panels. Metrics that were not normalised are drawn as differences to the base run.

    **Arguments:** - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`. - `tokens`: the text at each position. -
    `metric`: what it is called, for the title.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for another number of tokens, and another suffix.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> found = jc.activation_patch(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> figure = jc.draw_patching(found, "patching.svg", tokens=[tokenizer.decode(int(t)) for t in prompts.clean[0]])
    """
    target = written("draw_patching", path)
    check_kind("draw_patching: found", found, PatchedMetrics, "what jc.activation_patch gives")
    if tokens is not None:
        found.check_tokens("draw_patching", tokens)
    if found.normalise == "metric":
        found = dataclasses.replace(found, normalise="difference")
    means = found.mean()
    texts = None if tokens is None else token_names(tokens)
    panels = [
        (title, values, side, label, rows, texts if label == "position" else columns)
        for title, values, side, label, rows, columns in _panels(found, means)
    ]
    size = tuple(map(max, zip(*(panel_size(each[1].shape, each[4], each[5]) for each in panels), strict=True)))
    whole = headline(f"Activation patching: {RUNS[found.direction]}", metric=metric, prompts=len(found.base))
    figure, axes = new_figure(len(panels), size, title=whole)
    scale = signed(UNITS[found.normalise], largest(means.values()))
    for each, (title, values, side, label, rows, columns) in zip(axes, panels, strict=True):
        heat_map(
            each,
            values,
            scale,
            side=side,
            label=label,
            title=title,
            rows=rows,
            columns=columns,
            missing="there is no such site",
        )
    return saved(figure, target)


Names = Sequence[str] | None
Panel = tuple[str, Float[np.ndarray, "row column"], str, str, Names, Names]


def _panels(found: PatchedMetrics, means: dict[str, Float[np.ndarray, "layer ..."]]) -> Iterator[Panel]:
    """Yields of each panel its title, its values, what its rows and its columns are, and the names of both, if they are not counted."""
    if found.by == "layer":
        layers = sorted({layer for name in means for layer in found.layers(name)}, key=_order)
        values = np.full((len(means), len(layers)), np.nan)
        for row, (name, mean) in enumerate(means.items()):
            values[row, [layers.index(layer) for layer in found.layers(name)]] = mean
        yield "whole sites", values, "site", "layer", list(means), [_of_layer(layer) for layer in layers]
        return
    for name, mean in means.items():
        layers = found.layers(name)
        if found.by == "head_position":
            yield from (
                (f"{name}, layer {_of_layer(at)}", mean[i], "head", "position", None, None)
                for i, at in enumerate(layers)
            )
            continue
        rows = None if layers == tuple(range(len(layers))) else [_of_layer(layer) for layer in layers]
        yield name, mean, "layer", found.axes[-1], rows, None


def _of_layer(layer: int | None) -> str:
    return "embed" if layer is None else str(layer)


def _order(layer: int | None) -> int:
    return -1 if layer is None else layer
