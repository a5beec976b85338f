"""Whether a node is one of a model's."""

import functools as ft
from collections.abc import Collection
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._run import site_shapes
from .._sites import did_you_mean, Kind, Site
from ..models import Transformer
from ._nodes import Bias, Direction, Error, Final, Head, Index, is_known_index, Latent, Neuron, Position, Token


Node: TypeAlias = Neuron | Latent | Error | Head | Token | Position | Bias | Direction | Final
RESIDUAL = (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST)


def check_node(
    what: str, model: Transformer, node: Any, real: Bool[np.ndarray, " seq"], widths: dict[Site, int]
) -> None:
    """TypeError unless `node` is one, ValueError unless the model has it at this prompt.

    **Arguments:** - `real`: False for padding. - `widths`: how many latents there are, by the site of their dictionary.
    """
    if not isinstance(node, Node):
        raise TypeError(
            f"{what}: expected a node, such as jc.Neuron(layer, pos, index) or jc.Head(layer, head, query, key), got {node!r}."
        )
    if isinstance(node, Neuron | Head):
        _check_layer(what, model, node.layer)
    if isinstance(node, Neuron):
        mlp = model.blocks[node.layer].mlp
        if mlp is None:
            raise ValueError(f"{what}: {model.name} is of attention only, so layer {node.layer} has no neurons.")
        _check_index(what, node, "index", mlp.W_out.shape[0])
    if isinstance(node, Latent | Error):
        _check_known(what, node, widths)
    if isinstance(node, Latent):
        _check_index(what, node, "index", widths[node.site])
    if isinstance(node, Head):
        if node.part not in (None, "q", "k", "qk", "v"):
            raise ValueError(f"{what}: a head's part is 'q', 'k', 'qk', 'v' or None, got {node.part!r}.")
        _check_index(what, node, "head", model.n_heads)
        _check_pair(what, model, node, real)
    if isinstance(node, Position) and model.W_pos is None:
        raise ValueError(f"{what}: {model.name} rotates by positions inside attention, and has no embedding of them.")
    if isinstance(node, Bias):
        _check_site(what, model, node, (Kind.ATTN_OUT, Kind.MLP_OUT))
    if isinstance(node, Direction):
        _check_site(what, model, node, RESIDUAL)
        if node.vector.shape != (model.d_model,):
            raise ValueError(
                f"{what}: a direction has {model.d_model} numbers in {model.name}, got shape {node.vector.shape}."
            )
    if not isinstance(node, Head | Final):
        _check_position(what, node, "pos", real)


def is_there(model: Transformer, node: Node, seq: int, widths: dict[Site, int]) -> Bool[Array, ""] | None:
    """Whether a node's indices are of something, where they are traced; `None` where they are known, and were checked."""
    sizes = {"pos": seq, "query": seq, "key": seq, "head": model.n_heads}
    if isinstance(node, Latent):
        sizes["index"] = widths[node.site]
    elif isinstance(node, Neuron):
        mlp = model.blocks[node.layer].mlp
        sizes["index"] = 0 if mlp is None else mlp.W_out.shape[0]
    values = {name: getattr(node, name) for name in sizes if hasattr(node, name)}
    inside = [(value >= 0) & (value < sizes[name]) for name, value in values.items() if not is_known_index(value)]
    return ft.reduce(jnp.logical_and, inside) if inside else None


def _check_layer(what: str, model: Transformer, layer: int) -> None:
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"{what}: {model.name} has layers 0 to {model.n_layers - 1}, got layer {layer}.")


def _check_known(what: str, node: Latent | Error, widths: Collection[Site]) -> None:
    if node.site not in widths:
        there = ", ".join(f"`{site}`" for site in widths) or "none"
        raise ValueError(
            f"{what}: {node} is of a dictionary at `{node.site}`, and those given are at: {there}. Pass saes={{…}} with one there."
        )


def _check_site(what: str, model: Transformer, node: Bias | Direction, kinds: tuple[Kind, ...]) -> None:
    there = [site for site in site_shapes(model, 1) if site.kind in kinds]
    if node.site not in there:
        hint = did_you_mean(str(node.site), map(str, there))
        raise ValueError(
            f"{what}: {type(node).__name__} is at a site like `{there[0]}`; `{node.site}` is none of {model.name}. {hint}"
        )


def _check_index(what: str, node: Any, name: str, size: int) -> None:
    value: Index = getattr(node, name)
    if is_known_index(value) and not 0 <= int(value) < size:
        raise ValueError(f"{what}: {node} has {name} {int(value)}, and there are 0 to {size - 1}.")


def _check_position(what: str, node: Any, name: str, real: Bool[np.ndarray, " seq"]) -> None:
    _check_index(what, node, name, len(real))
    value: Index = getattr(node, name)
    if is_known_index(value) and not real[int(value)]:
        raise ValueError(f"{what}: {node} is at position {int(value)}, which is padding.")


def _check_pair(what: str, model: Transformer, node: Head, real: Bool[np.ndarray, " seq"]) -> None:
    for name in ("query", "key"):
        _check_position(what, node, name, real)
    if not (is_known_index(node.query) and is_known_index(node.key)):
        return
    query, key = int(node.query), int(node.key)
    if model.causal and key > query:
        raise ValueError(f"{what}: {node}: position {query} does not attend to position {key}, which comes after it.")
    window = model.windows[node.layer]
    if window is not None and key <= query - window:
        raise ValueError(
            f"{what}: {node}: attention of layer {node.layer} reaches back {window} positions, and {key} is further from {query}."
        )
