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
from .._run import metric_of_last, NOTHING
from .._sites import Kind, layer_of, Site
from .._tap import Tap
from ..models import Transformer
from ..parts import Block


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
) -> tuple[Variants, dict[Site, Float[Array, "variant ..."]]]:
    """Runs variants of prompts from the cut on to the end of the blocks, or of block `until`.

    **Returns:** the residual stream there, and the values at the sites of these blocks that `record` names.
    """
    found = {}
    for layer, after, values in onwards(model, masks, cut, rows, resid, edits=edits, record=record):
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
) -> Iterator[tuple[int, Variants, dict[Site, Float[Array, "variant ..."]]]]:
    """The same block by block: yields the layer, the residual stream that leaves it, and what was recorded, with sites as in block 0."""
    record = frozenset(record)
    for layer, whole in blocks_from(model, cut):
        here = lambda site, layer=layer: site.layer == layer
        wanted = frozenset(site.offset_layers(-layer) for site in record if here(site))
        changed = {site.offset_layers(-layer): edit for site, edit in edits.items() if here(site)}
        block, mask = model.blocks[layer], masks[layer]
        resid, values = _through(block, mask, rows, resid, changed, whole=whole, record=wanted)
        yield layer, resid, values


@ft.partial(jax.jit, static_argnames=("whole", "record"))
def _through(
    block: Block, masks, rows: Rows, resid: Variants, edits: Edits, *, whole: bool, record: frozenset[Site]
) -> tuple[Variants, dict[Site, Float[Array, "variant ..."]]]:
    """Runs a block, or its second half, with sites as in block 0, so that all blocks share the program."""

    def one(row, resid, edits):
        tap = Tap(NOTHING, edits, record, layer=0)
        after = block(resid, masks[row], tap) if whole else block.feed(resid, tap)
        return after, tap.cache

    return jax.vmap(one)(rows, resid, edits)


@jax.jit
def metric_of_variants(ends: Transformer, metric: Metric, rows: Rows, resid: Variants) -> Float[Array, "variant ..."]:
    """Computes each prompt's metric of its variants' last residual streams; `ends` is the model without its blocks."""
    mine = lambda row: jax.tree.map(lambda x: x[row], metric)
    return jax.vmap(lambda row, resid: metric_of_last(ends, mine(row), resid))(jnp.asarray(rows), resid)
