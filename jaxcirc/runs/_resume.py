"""From a cut on: prompts go on through the blocks from a residual stream that is given, many variants of each at once.

What a component writes acts on the rest of a model through the residual stream alone. So a changed run is the clean one up to the cut
where the change enters, and only what lies behind is run. Block by block, and not in one program: blocks share programs, and no block's
weights are copied.
"""

import functools as ft
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import AbstractEdit
from .._metrics import Metric
from .._run import metric_of_last, NOTHING, only_position
from .._sites import Kind, layer_of, Site
from .._tap import bare_tap, Tap
from ..models import Transformer
from ..parts import Block, KVCache
from ._windows import Window


Masks = Sequence[Bool[Array, "batch q_seq k_seq"]]  # of each layer
Rows = Int[Array | np.ndarray, " variant"]  # of which prompt each variant is
Variants = Float[Array, "variant seq d_model"]
Edits = Mapping[Site, AbstractEdit]  # whose arrays have a leading axis over variants


def blocks_from(model: Transformer, cut: Site) -> Iterator[tuple[int, bool]]:
    """Yields the layers behind a residual cut, and whether all of the layer is, or its second half alone."""
    for layer in range(layer_of(cut), model.n_layers):
        yield layer, layer > layer_of(cut) or cut.kind == Kind.RESID_PRE


def resume(
    model: Transformer,
    masks: Masks,
    cut: Site,
    rows: Rows,
    resid: Variants,
    *,
    edits: Edits = NOTHING,
    record: Iterable[Site] = (),
    until: int | None = None,
    window: Window | None = None,
) -> tuple[Variants, dict[Site, Float[Array, "variant ..."]]]:
    """Runs variants of prompts from the cut on to the end of the blocks, or of block `until`; with a window at its positions alone, of
    which `resid` is then.

    **Returns:** the residual stream there, and the values at the sites of these blocks that `record` names.
    """
    found = {}
    for layer, after, values in onwards(model, masks, cut, rows, resid, edits=edits, record=record, window=window):
        resid = after
        found |= {site.offset_layers(layer): value for site, value in values.items()}
        if layer == until:
            break
    return resid, found


def onwards(
    model: Transformer,
    masks: Masks,
    cut: Site,
    rows: Rows,
    resid: Variants,
    *,
    edits: Edits = NOTHING,
    record: Iterable[Site] = (),
    window: Window | None = None,
) -> Iterator[tuple[int, Variants, dict[Site, Float[Array, "variant ..."]]]]:
    """The same block by block: yields the layer, the residual stream that leaves it, and what was recorded, with sites as in block 0."""
    record = frozenset(record)
    for layer, whole in blocks_from(model, cut):
        here = lambda site, layer=layer: site.layer == layer
        wanted = frozenset(site.offset_layers(-layer) for site in record if here(site))
        changed = {site.offset_layers(-layer): edit for site, edit in edits.items() if here(site)}
        block, mask, earlier = model.blocks[layer], masks[layer], _earlier(window, layer) if whole else None
        resid, values = _through(block, mask, rows, resid, changed, earlier, whole=whole, record=wanted)
        yield layer, resid, values


def attend(
    model: Transformer,
    masks: Masks,
    layer: int,
    rows: Rows,
    resid: Variants,
    *,
    edits: Edits = NOTHING,
    window: Window | None = None,
) -> Variants:
    """Runs the attention of a block alone: what enters the block with what attention makes of it added."""
    changed = {site.offset_layers(-layer): edit for site, edit in edits.items()}
    return _attend(model.blocks[layer], masks[layer], rows, resid, changed, _earlier(window, layer))


Earlier = tuple[Rows, Array, Array]  # a window's first position in each variant, and the keys and values of a layer


def _earlier(window: Window | None, layer: int) -> Earlier | None:
    return None if window is None or window.caches is None else (window.first, *window.caches[layer])


@ft.partial(jax.jit, static_argnames=("whole", "record"))
def _through(
    block: Block,
    masks,
    rows: Rows,
    resid: Variants,
    edits: Edits,
    earlier: Earlier | None,
    *,
    whole: bool,
    record: frozenset[Site],
) -> tuple[Variants, dict[Site, Float[Array, "variant ..."]]]:
    """Runs a block, or its second half, with sites as in block 0, so that all blocks share the program."""

    def one(row, resid, edits, first):
        tap = Tap(NOTHING, edits, record, layer=0)
        if not whole:
            return block.feed(resid, tap), tap.cache
        return block(resid, *_seen(masks, earlier, row, first, len(resid), tap)), tap.cache

    return jax.vmap(one)(rows, resid, edits, None if earlier is None else earlier[0])


@jax.jit
def _attend(block: Block, masks, rows: Rows, resid: Variants, edits: Edits, earlier: Earlier | None) -> Variants:
    def one(row, resid, edits, first):
        tap = Tap(NOTHING, edits, frozenset(), layer=0)
        mask, tap, *cache = _seen(masks, earlier, row, first, len(resid), tap)
        return block.attend(resid, mask, tap, *cache)

    return jax.vmap(one)(jnp.asarray(rows), resid, edits, None if earlier is None else earlier[0])


def _seen(masks, earlier: Earlier | None, row, first, size: int, *more) -> tuple:
    """Of one variant the mask, and behind what else a block is called with the cache if it is run in a window."""
    if earlier is None:
        return masks[row], *more
    mask = jax.lax.dynamic_slice_in_dim(masks[row], first, size)
    return mask, *more, KVCache(earlier[1][row], earlier[2][row], first)


def metric_from(
    model: Transformer,
    metric: Metric,
    masks: Masks,
    cut: Site,
    rows: Rows,
    resid: Variants,
    window: Window,
) -> Float[Array, "variant ..."]:
    """Runs variants from the cut on to the end in their windows, of which `resid` is, and computes each's metric."""
    ends, last, start = model.without_blocks, model.n_layers - 1, layer_of(cut)
    if not window.only_read:
        return metric_of_variants(ends, metric, rows, resume(model, masks, cut, rows, resid)[0])
    if start < last:
        resid, _ = resume(model, masks, cut, rows, resid, until=last - 1, window=window)
        cut = Site(last, Kind.RESID_PRE)
    earlier = _earlier(window, last)
    position, of_position = only_position(metric)
    block = model.blocks[last] if start <= last else None
    resid = _where_read(block, masks[last], rows, resid, position, earlier, whole=cut.kind == Kind.RESID_PRE)
    return metric_of_variants(ends, of_position, rows, resid)


@ft.partial(jax.jit, static_argnames="whole")
def _where_read(
    block: Block | None, masks, rows: Rows, resid: Variants, positions, earlier: Earlier | None, *, whole: bool
) -> Float[Array, "variant 1 d_model"]:
    """Runs the last block, or its second half, or `None`, at one position of each variant, that of its prompt in `positions`."""
    positions = jnp.where(positions < 0, positions + masks.shape[1], positions)

    def one(row, resid, first):
        here = positions[row] if earlier is None else positions[row].astype(first.dtype) - first
        if block is None or not whole:
            return resid[here][None] if block is None else block.feed(resid[here][None], bare_tap(0))
        mask, *cache = _seen(masks, earlier, row, first, len(resid))
        return block.at(here, resid, mask, *cache)

    return jax.vmap(one)(jnp.asarray(rows), resid, None if earlier is None else earlier[0])


@jax.jit
def metric_of_variants(ends: Transformer, metric: Metric, rows: Rows, resid: Variants) -> Float[Array, "variant ..."]:
    """Computes each prompt's metric of its variants' last residual streams; `ends` is the model without its blocks."""
    mine = lambda row: jax.tree.map(lambda x: x[row], metric)
    return jax.vmap(lambda row, resid: metric_of_last(ends, mine(row), resid))(jnp.asarray(rows), resid)
