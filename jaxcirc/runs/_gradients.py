"""The way back from the metric: its gradient at the residual cuts of many variants of prompts, block by block as they are run."""

import functools as ft
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._metrics import Metric
from .._precision import widened
from .._run import metric_of_last, only_position
from .._sites import Kind, layer_of, Site
from .._tap import bare_tap
from ..graph import structure_of
from ..models import is_all_known, Transformer
from ..parts import Block
from ._resume import blocks_from, Masks, Rows, Variants


def cut_gradients(
    model: Transformer, metric: Metric, masks: Masks, rows: Rows, resid: Variants, cut: Site, wanted: frozenset[Site]
) -> dict[Site, Variants]:
    """Runs variants `resid` of prompts `rows` from `cut` on, and back.

    **Returns:** the gradient of each variant's metric at the residual cuts `wanted`, none of which is before `cut`.
    """
    backs = []
    for layer, half in _halves(model, cut):
        block, here = model.blocks[layer], Site(layer, Kind.RESID_MID if half == "feed" else Kind.RESID_PRE)
        position, of_position = only_position(metric)
        if layer == model.n_layers - 1 and position is not None and _only_where_read(model, here, resid, wanted):
            half, metric = "all", of_position
        else:
            position = None
        resid, back = _forward(block, masks[layer], rows, resid, position, half=half)
        backs.append((here, block, back))
        if position is not None:
            break
    gradient = _end_gradient(model.without_blocks, metric, rows, resid)
    found = {Site(model.n_layers, Kind.RESID_PRE): gradient}
    while backs:
        here, block, back = backs.pop()
        gradient = found[here] = _backward(block, back, gradient)
    return {cut: found[cut] for cut in wanted}


def bytes_held(model: Transformer, seq: int) -> int:
    """Counts what the way back through all blocks holds for one variant of a prompt, from the shapes of what it would hold."""
    resid = jax.ShapeDtypeStruct((1, seq, model.d_model), model.activation_dtype)
    return model.n_layers * _bytes_of_block(*structure_of(model.blocks[0]), resid)


@ft.cache
def _bytes_of_block(tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], resid: jax.ShapeDtypeStruct) -> int:
    """Counts what the way back through a block of these shapes holds for residual streams of the shape of `resid`."""
    block, seq = jax.tree.unflatten(tree, leaves), resid.shape[1]
    mask, row = jax.ShapeDtypeStruct((1, seq, seq), jnp.bool_), jax.ShapeDtypeStruct((1,), jnp.int32)
    halves = ("attend", "feed") if block.has_middle else ("all",)
    backs = [_forward.eval_shape(block, mask, row, resid, None, half=half)[1] for half in halves]
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backs))


def _halves(model: Transformer, cut: Site) -> Iterator[tuple[int, str]]:
    """Yields layers and their parts behind a cut: halves where the residual stream between them is a cut too, else all of a block."""
    for layer, whole in blocks_from(model, cut):
        if not model.blocks[layer].has_middle:
            yield layer, "all"
            continue
        if whole:
            yield layer, "attend"
        yield layer, "feed"


def _only_where_read(model: Transformer, here: Site, resid: Variants, wanted: frozenset[Site]) -> bool:
    """Whether to run the last block, which begins at `here`, only where the metric reads: where nothing is wanted inside, and that saves
    more than the seconds in which a program for it is compiled.
    """
    inside = Site(layer_of(here), Kind.RESID_MID)
    # Of parts that are known another position has no part in what they make of one, but by attention.
    known = is_all_known(model.blocks[-1])
    return known and here.kind == Kind.RESID_PRE and inside not in wanted and _worth_a_program(model, resid)


def _worth_a_program(model: Transformer, resid: Variants) -> bool:
    """Whether a hundred billion operations are saved, four for each token and weight, at three sites a layer."""
    weights = sum(x.size for x in jax.tree.leaves(model.blocks[-1]))
    return 3 * len(model.blocks) * 4 * weights * resid.size // resid.shape[-1] > 1e11


class _Back(eqx.Module):
    """The way back through a block: what it holds, but for the block's own arrays, of which it has the numbers in `own`."""

    held: list[Array]
    own: tuple[int | None, ...] = eqx.field(static=True)
    tree: Any = eqx.field(static=True)


@ft.partial(jax.jit, static_argnames="half")
def _forward(
    block: Block, masks: Array, rows: Rows, resid: Variants, position: Array | None, *, half: str
) -> tuple[Array, _Back]:
    """Runs a block, at all positions or at one of each prompt, or half of it; and makes the way back."""

    def one(row, x):
        if position is not None:
            return block.at(position[row], x, masks[row])
        if half == "feed":
            return block.feed(x, bare_tap(0))
        return (block.attend if half == "attend" else block)(x, masks[row], bare_tap(0))

    block = widened(block)  # the way back holds these very arrays, and makes them again
    # Of what lies between products only these are held: the rest is computed again, in less time than it takes to be written and read.
    variants = jax.checkpoint(
        lambda resid: jax.vmap(one)(jnp.asarray(rows), resid), policy=jax.checkpoint_policies.dots_saveable
    )
    out, back = jax.vjp(variants, resid)
    numbers = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(block))}
    leaves, tree = jax.tree.flatten(back)
    own = tuple(numbers.get(id(leaf)) for leaf in leaves)
    return out, _Back([leaf for leaf, i in zip(leaves, own, strict=True) if i is None], own, tree)


@jax.jit
def _backward(block: Block, back: _Back, gradient: Array) -> Variants:
    """Pulls a gradient `[variant seq d_model]` behind a block, or half of it, back to where that begins."""
    arrays, held = jax.tree.leaves(widened(block)), iter(back.held)
    leaves = [next(held) if i is None else arrays[i] for i in back.own]
    return jax.tree.unflatten(back.tree, leaves)(gradient)[0]


@jax.jit
def _end_gradient(ends: Transformer, metric: Metric, rows: Rows, resid: Variants) -> Variants:
    """Computes the gradient of the metric at the last residual stream of each variant."""

    def one(row, resid):
        mine = jax.tree.map(lambda x: x[row], metric)
        return jax.grad(lambda x: metric_of_last(ends, mine, x))(resid)

    return jax.vmap(one)(jnp.asarray(rows), resid)
