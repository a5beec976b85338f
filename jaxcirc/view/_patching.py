"""Activation patching, drawn."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .._checks import check_kind
from .._files import write_text, writing_file
from .._words import counted
from ..patching import PatchedMetrics
from ._svg import check_svg
from ._tokens import token_names
from .plot import document, heat_map


RUNS = {"denoise": "corrupt run, clean values put in", "noise": "clean run, corrupt values put in"}
UNITS = {"fraction": "fraction", "difference": "change"}


def draw_patching(found: PatchedMetrics, path: str | Path, *, tokens: Sequence[str] | None = None) -> None:
    """Draws activation patching as heat maps in an SVG file, means over prompts: a panel a kind of site, layers by positions or by heads;
    of heads by positions a panel a layer; and of whole sites one panel. Colours are symmetric around 0, which is the base run, and the
    same in all panels. Metrics that were not normalised are drawn as differences to the base run.

    **Arguments:** - `tokens`: the text at each position.

    **Raises:** `ValueError` for a file that is not named as SVG, and another number of tokens.

    >>> prompts = jc.data.ioi(tokenizer, 4, seed=0)
    >>> found = jc.activation_patch(model, prompts.clean, prompts.corrupt, prompts.metric())
    >>> jc.draw_patching(found, "patching.svg", tokens=[tokenizer.decode(int(t)) for t in prompts.clean[0]])
    """
    check_svg(path)
    check_kind("draw_patching: found", found, PatchedMetrics, "what jc.activation_patch gives")
    if tokens is not None:
        found.check_tokens("draw_patching", tokens)
    if found.normalise == "metric":
        found = dataclasses.replace(found, normalise="difference")
    means = found.mean()
    most = max(float(np.abs(mean).max()) for mean in means.values())
    note = f"{RUNS[found.direction]}; mean of {counted(len(found.base), 'prompt')}"
    panels = [
        heat_map(
            values.tolist(),
            label=label,
            side=side,
            title=title,
            note=note,
            unit=UNITS[found.normalise],
            columns=token_names(tokens) if label == "position" and tokens is not None else columns,
            rows=rows,
            most=most,
        )
        for title, values, side, label, rows, columns in _panels(found, means)
    ]
    with writing_file(path) as aside:
        write_text(aside, document(panels, title=f"Activation patching: {RUNS[found.direction]}"))


Names = Sequence[str] | None
Panel = tuple[str, Float[np.ndarray, "row column"], str, str, Names, Names]


def _panels(found: PatchedMetrics, means: dict[str, Float[np.ndarray, "layer ..."]]) -> Iterator[Panel]:
    """Yields of each panel its title, its values, what its rows and its columns are, and the names of both, if they are not counted."""
    if found.by == "layer":
        layers = sorted({layer for name in means for layer in found.layers(name)}, key=_order)
        values = np.full((len(means), len(layers)), np.nan)
        for row, (name, mean) in enumerate(means.items()):
            values[row, [layers.index(layer) for layer in found.layers(name)]] = mean
        yield "whole sites", values, "", "layer", list(means), [_of_layer(layer) for layer in layers]
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
