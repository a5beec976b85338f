"""Whether a model is affine in what is embedded, with some of its sites held: read off its own forward pass and the derivative of that."""

import dataclasses
import functools as ft
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from .._dependence import dependence, reached_by_jumps
from .._edits import AbstractEdit, Apply
from .._sites import Kind, Site
from .._tap import EditEach, Tap
from ..models import Transformer
from ._sites import structure_of


CUTS = frozenset(
    {Kind.ATTN_OUT, Kind.RESID_MID, Kind.MLP_OUT, Kind.RESID_POST, Kind.FINAL_NORMALIZED, Kind.LOGITS}
)  # where what a part makes of the residual stream has arrived
POINT = "point"


def first_curved(model: Transformer, held: Collection[Site]) -> Site | None:
    """Finds the first site behind a part whose derivative with respect to what is embedded is not the same at every point, or that jumps,
    with the values at the sites `held` given; `None` if there is none, so that the model is affine.
    """
    few, layers, held_there = _first_of_each(model, frozenset(held))
    first = _first_curved(*structure_of(few), held_there)
    return first if first is None or first.layer is None else Site(layers[first.layer], first.kind)


@ft.lru_cache(maxsize=64)
def _first_curved(tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], held: frozenset[Site]) -> Site | None:
    model = jax.tree.unflatten(tree, leaves)
    embedded = jax.ShapeDtypeStruct((3, model.d_model), model.activation_dtype)  # three positions stand for any number
    tangents = dependence(jax.make_jaxpr(ft.partial(_tangents, held))(model, embedded, embedded))
    curved = {name for name, read in tangents.items() if POINT in read}
    curved |= reached_by_jumps(jax.make_jaxpr(ft.partial(_named_values, held))(model, embedded))
    return min(map(Site.parse, curved), default=None)


def _first_of_each(model: Transformer, held: frozenset[Site]) -> tuple[Transformer, list[int], frozenset[Site]]:
    """Leaves of blocks that are alike, with the same held, the first: if none of these bends, none of the others does behind them.

    **Returns:** the model of these blocks, which layers of the whole they are, and what is held in it.
    """
    of_layer = lambda layer: frozenset(site.offset_layers(-layer) for site in held if site.layer == layer)
    kinds: dict[Any, int] = {}
    for layer, (block, window) in enumerate(zip(model.blocks, model.windows, strict=True)):
        kinds.setdefault((structure_of(block), window, of_layer(layer)), layer)
    layers = list(kinds.values())
    outside = {site for site in held if site.layer is None}
    inside = {site.offset_layers(new) for new, layer in enumerate(layers) for site in of_layer(layer)}
    of_layers = lambda each: tuple(each[layer] for layer in layers)
    fewer = dataclasses.replace(model, blocks=of_layers(model.blocks), windows=of_layers(model.windows))
    return fewer, layers, frozenset(outside | inside)


def _tangents(
    held: frozenset[Site], model: Transformer, point: Float[Array, "seq d_model"], step: Float[Array, "seq d_model"]
) -> dict[Site, Array]:
    """Takes the derivative of a run along `step` at the cuts, each with its site's name, where `point` is embedded, which is named too."""
    values = ft.partial(_values, held, model)
    return _named(jax.jvp(values, (checkpoint_name(point, POINT),), (step,))[1])


def _named_values(held: frozenset[Site], model: Transformer, point: Float[Array, "seq d_model"]) -> dict[Site, Array]:
    """Runs to the cuts, each with its site's name, where `point` is embedded, which is named too."""
    return _named(_values(held, model, checkpoint_name(point, POINT)))


def _named(found: dict[Site, Array]) -> dict[Site, Array]:
    return {site: checkpoint_name(each, str(site)) for site, each in found.items()}


def _values(held: frozenset[Site], model: Transformer, point: Float[Array, "seq d_model"]) -> dict[Site, Array]:
    """Runs to the cuts where `point` is embedded, with what is held not moving."""

    def edit(site: Site) -> AbstractEdit | None:
        if site in held:
            return Apply(jnp.zeros_like)  # whatever is held, it does not move
        return Apply(lambda _: point) if site.kind == Kind.EMBED else None

    cuts = frozenset(Site(layer, kind) for kind in CUTS for layer in _layers(model, kind))
    tap = Tap({}, EditEach(edit), cuts)
    model(jnp.zeros(point.shape[0], jnp.int32), tap)
    return tap.cache


def _layers(model: Transformer, kind: Kind) -> Collection[int | None]:
    return range(model.n_layers) if kind.in_block else (None,)
