"""The mean gradient at a residual cut over points on a path: only what lies after the cut is run.

Block by block, and not in one program, so that blocks share one, and a block's weights are nowhere copied.
"""

import functools as ft
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._metrics import Metric
from .._precision import widened
from .._run import metric_of_last, only_position
from .._sites import Site
from .._tap import bare_tap
from ..models import Transformer
from ..parts import Block
from ._after import halves_after
from ._batches import largest_batch
from ._states import States


def mean_gradient(
    model: Transformer, metric: Metric, at: States, start: Site, change: Array, points: tuple[Array, Array]
) -> Float[Array, "batch seq d_model"]:
    """Mean over the path of the gradient at the residual cut `start`; only what lies after the cut is run."""
    (batch, seq), (fractions, weights) = at.mask.shape, points
    size = largest_batch(batch, len(fractions) * seq)
    out = []
    for first in range(0, batch, size):
        some = slice(first, first + size)
        resid, change_here, keys, mine = jax.tree.map(
            lambda x, some=some: x[some], (at.resid[start], change, at.mask, metric)
        )
        out.append(_gradient_at_cut(model, mine, start, resid, change_here, keys, fractions, weights))
    return out[0] if len(out) == 1 else jnp.concatenate(out)


def _gradient_at_cut(model: Transformer, metric: Metric, start: Site, resid, change, keys, fractions, weights) -> Array:
    masks = model.batch_masks(keys)
    worlds = resid[:, None] + fractions[:, None, None] * change[:, None]  # [batch world seq d_model]
    attends, feeds = halves_after(model, start)
    backs = []
    for block, mask, *halves in zip(model.blocks, masks, attends, feeds, strict=True):
        if any(halves):
            shorter = block is model.blocks[-1] and halves[0] and _worth_a_program(model, worlds)
            position, metric = only_position(metric) if shorter else (None, metric)
            worlds, back = _from_cut(block, mask, worlds, position, whole=bool(halves[0]))
            backs.append((block, back))
    gradient = _end_gradient(model.ends, metric, worlds)
    while backs:
        gradient = _backward(*backs.pop(), gradient)
    return jnp.einsum("w,bwsm->bsm", weights, gradient)


def _worth_a_program(model: Transformer, worlds: Float[Array, "batch world seq d_model"]) -> bool:
    """Whether running the last block only where the metric reads saves more than the seconds in which a program for it is compiled: a
    hundred billion operations, four for each token and weight, at three sites a layer.
    """
    weights = sum(x.size for x in jax.tree.leaves(model.blocks[-1]))
    return 3 * len(model.blocks) * 4 * weights * worlds[..., 0].size > 1e11


class _Back(eqx.Module):
    """The way back through a block: what it holds, but for the block's own arrays, of which it has the numbers in `own`."""

    held: list[Array]
    own: tuple[int | None, ...] = eqx.field(static=True)
    tree: Any = eqx.field(static=True)


@ft.partial(jax.jit, static_argnames="whole")
def _from_cut(block: Block, mask: Array, resid: Array, position: Array | None, *, whole: bool) -> tuple[Array, _Back]:
    """A block, at all positions or at one of each prompt, or its second half, from the cut where it begins; and the way back."""

    def half(x, mask, position):
        if position is not None:
            return block.at(position, x, mask)
        return block(x, mask, bare_tap(0)) if whole else block.feed(x, bare_tap(0))

    block = widened(block)  # the way back holds these very arrays, and makes them again
    worlds = jax.vmap(jax.vmap(half, (0, None, None)))
    out, back = jax.vjp(lambda x: worlds(x, mask, position), resid)
    numbers = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(block))}
    leaves, tree = jax.tree.flatten(back)
    own = tuple(numbers.get(id(leaf)) for leaf in leaves)
    return out, _Back([leaf for leaf, i in zip(leaves, own, strict=True) if i is None], own, tree)


@jax.jit
def _backward(block: Block, back: _Back, gradient: Array) -> Array:
    arrays, held = jax.tree.leaves(widened(block)), iter(back.held)
    leaves = [next(held) if i is None else arrays[i] for i in back.own]
    return jax.tree.unflatten(back.tree, leaves)(gradient)[0]


@jax.jit
def _end_gradient(model: Transformer, metric: Metric, resid: Array) -> Array:
    each = jax.vmap(lambda metric, x: jax.grad(lambda x: metric_of_last(model, metric, x))(x), (None, 0))
    return jax.vmap(each)(metric, resid)
