"""Blocks, one after another: a long span of them that nobody reads or edits inside runs as a loop over one program."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from .._tap import bare_tap, Tap
from .._typing import Mask, Resid
from ..parts import Block
from ._pieces import Pieces


SPAN = 8  # blocks: of fewer the loop's program takes as long to compile


def through_blocks(
    blocks: Sequence[Block], masks: Sequence[Mask], resid: Resid, pieces: Pieces, *, loops: bool
) -> Resid:
    """Runs blocks on a residual stream, with sites that count layers from the first.

    **Arguments:** - `loops`: whether blocks behind one another that are alike, and in which no site is asked for, run as one loop over
    their arrays stacked. It is compiled in the time of one block, and each call copies the weights first: for programs that do much work
    in a call, or are called seldom.
    """
    layer = 0
    while layer < len(blocks):
        end = _end_of_span(blocks, pieces.tap, layer) if loops else layer
        if end - layer >= SPAN:
            stacked = jax.tree.map(lambda *each: jnp.stack(each), *blocks[layer:end])
            step = lambda resid, one: (one[0](resid, one[1], bare_tap(0)), None)
            resid, _ = jax.lax.scan(step, resid, (stacked, jnp.stack(masks[layer:end])))
            layer = end
        else:
            resid = pieces(_through, blocks[layer], layer, resid, masks[layer])
            layer += 1
    return resid


def _through(block: Block, tap: Tap, resid: Resid, mask: Mask) -> Resid:
    return block(resid, mask, tap)


def _end_of_span(blocks: Sequence[Block], tap: Tap, begin: int) -> int:
    """Finds the block behind the last of a span of blocks that are alike, from `begin` on, in which nothing is asked for."""
    end = begin
    while end < len(blocks) and not tap.uses_layer(end) and _alike(blocks[begin], blocks[end]):
        end += 1
    return end


def _alike(one: Block, other: Block) -> bool:
    shapes = lambda block: [(x.shape, x.dtype) for x in jax.tree.leaves(block)]
    return jax.tree.structure(one) == jax.tree.structure(other) and shapes(one) == shapes(other)
