"""By how much what senders write differs in another run, from both runs side by side.

What each head writes by itself is large: of that one layer is held at a time, and of all layers the difference alone.
"""

import functools as ft
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._run import NOTHING
from .._sites import Kind, Site
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Block
from ._recorded import embed, Recorded
from ._resume import metric_of_variants, onwards
from ._writes import embedding_writes, kinds_written, sites_written, writes_in_block


class Moves(NamedTuple):
    """The run of some prompts, by how much what senders write differs in the other one, and the metric there, `None` for values of no
    run.
    """

    run: Recorded
    moved: Float[Array, "batch sender seq d_model"]
    metric: Float[Array, " batch"] | None


def record_moves(
    model: Transformer,
    graph: ComponentGraph,
    own: Int[Array | np.ndarray, "batch seq"],
    other: Int[Array | np.ndarray, "batch seq"] | Float[Array, "one_or_batch sender seq d_model"],
    mask: Bool[Array | np.ndarray, "batch seq"],
    sites: Iterable[Site],
    metric: Metric,
) -> Moves:
    """Runs prompts and the other ones as one batch; or prompts alone, where `other` is what senders write in another run of each, or of
    all.

    **Arguments:** - `model`: as the graph has it. - `sites`: what is recorded of the prompts' own run, besides what leaves the last block.
    - `metric`: its array leaves carry the batch axis.
    """
    count, sides = len(own), 2 if other.ndim == 2 else 1
    sites, tokens, real, of_sides, rows = frozenset(sites), own, mask, metric, np.arange(sides * count)
    if sides == 2:
        tokens, real, of_sides = _one_batch((own, mask, metric), (other, mask, metric))
    masks, written = model.batch_masks(jnp.asarray(real)), sites_written(model)
    outside = frozenset(site for site in sites | written if site.layer is None)
    resid, values = embed(model.without_blocks, jnp.asarray(tokens), jnp.asarray(real), {}, record=outside)
    embedded = {site.kind: value for site, value in values.items()}
    moved = _embedded(graph, embedded, None if sides == 2 else other)
    kept = {site: value for site, value in values.items() if site in sites}
    first, last = Site(0, Kind.RESID_PRE), Site(model.n_layers - 1, Kind.RESID_POST)
    # Not recorded as others are: blocks of which the same is recorded share a program.
    recorded = (sites | written) - outside - {last}
    for layer, after, values in onwards(model, masks, first, rows, resid, edits=NOTHING, record=recorded):
        block, resid = model.blocks[layer], after
        mine = {kind: values[Site(0, kind)] for kind in kinds_written(block)}
        moved = _of_block(graph, block, mine, moved, np.asarray(layer, np.int32))
        kept |= {site.offset_layers(layer): x for site, x in values.items() if site.offset_layers(layer) in sites}
    measured = metric_of_variants(model.without_blocks, of_sides, rows, resid)
    kept[last] = resid
    if sides == 1:
        return Moves(Recorded(kept, masks, measured), moved, None)
    (kept, masks, mine), theirs = _halves(kept, masks, measured)
    return Moves(Recorded(kept, masks, mine), moved, theirs)


@jax.jit
def _one_batch(own: Any, other: Any) -> Any:
    """One side behind the other."""
    return jax.tree.map(lambda *x: jnp.concatenate(x), own, other)


@jax.jit
def _halves(kept, masks, measured) -> tuple[Any, Float[Array, " batch"]]:
    """The first half of a batch, and what was measured in the second."""
    count = len(measured) // 2
    return jax.tree.map(lambda x: x[:count], (kept, masks, measured)), measured[count:]


@ft.partial(jax.jit, static_argnames="graph")
def _embedded(graph: ComponentGraph, values: Mapping[Kind, Float[Array, "batch seq d_model"]], theirs) -> Array:
    """By how much what the embeddings write differs; of senders in blocks what they write in the other run, 0 where that is to be run."""
    own = embedding_writes(graph, values)
    if theirs is None:
        count, moves = len(own) // 2, own[len(own) // 2 :] - own[: len(own) // 2]
        theirs = jnp.zeros((count, len(graph.senders), *own.shape[2:]), own.dtype)
    else:
        theirs = jnp.broadcast_to(theirs, (len(own), *theirs.shape[1:])).astype(own.dtype)
        moves = theirs[:, : own.shape[1]] - own
    return theirs.at[:, : own.shape[1]].set(moves)


@ft.partial(jax.jit, static_argnames="graph", donate_argnames="moved")
def _of_block(
    graph: ComponentGraph, block: Block, values: dict[Kind, Float[Array, "run ..."]], moved, layer
) -> Float[Array, "batch sender seq d_model"]:
    """The same with what the senders of a block moved in its place, the same program for all blocks."""
    own = writes_in_block(graph, block, values)
    first = graph.of_layer.first + layer * graph.of_layer.senders
    if len(own) > len(moved):
        moves = own[len(moved) :] - own[: len(moved)]
    else:
        moves = jax.lax.dynamic_slice_in_dim(moved, first, own.shape[1], axis=1) - own
    return jax.lax.dynamic_update_slice_in_dim(moved, moves, first, axis=1)
