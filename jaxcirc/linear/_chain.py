r"""Full Jacobians through several blocks in closed form: rows are made by the last block and pulled back through the others, in place.

The rows of target position `t` are 0 at the positions after it, so a few groups of them, each cut to the positions that it reaches,
do half the work. Within a block attention costs four projections of each row; the MLP with its norm is one matrix a position,
$I + J_{mlp}(s)$ [d_model d_model], made once and used for every row.
"""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._sites import Kind, Site
from ..runs import BUDGET
from ._block import LinearBlock, linearise
from ._dense import block_matrix
from ._maps import pull
from ._segment import between_blocks, Segment


Rows = Float[Array, "seq n d_model"]
Matrix = Float[Array, "t d_target seq d_model"]


def chain_matrix(
    segment: Segment, target_pos: np.ndarray, *, budget: int = BUDGET, groups: int | None = None
) -> Float[Array, "t d_model seq d_model"]:
    """`J[target_pos]`, holding its result and the budget. `groups`: into how many parts, each cut to what they reach, the rows go."""
    seq, d_model = segment.resid.shape
    *rest, last = split(segment)
    # Every part has its own shapes and is compiled apart, which only work of a second or so makes up for.
    work = len(segment.blocks) * seq**2 * d_model**3
    groups = groups or (1 if work < 1e9 else 2 if work < 1e11 else 4)
    causal = bool(not np.triu(np.asarray(jnp.stack(segment.masks)), 1).any())
    kept = seq * d_model**2 * segment.resid.dtype.itemsize <= budget // 2
    everywhere = jnp.arange(seq, dtype=jnp.int32)
    matrix = block_matrix(last, jnp.asarray(target_pos, jnp.int32), everywhere, budget=budget)
    for block in reversed(rest):
        mlps = mlp_matrices(block) if kept else None
        for part in np.array_split(np.arange(len(target_pos)), min(groups, len(target_pos))):
            reached = int(target_pos[part].max()) + 1 if causal else seq
            matrix = pull_block(block, matrix, mlps, int(part[0]), count=len(part), reached=reached, budget=budget // 2)
    return matrix


def split(segment: Segment) -> list[Segment]:
    """The segment block by block: what enters each, and which of its sites are held."""
    entering, last = [segment.resid, *_entering(segment)], len(segment.blocks) - 1
    ends = [Site(0, Kind.RESID_POST)] * last + [segment.target.offset_layers(-last)]
    held = lambda layer: (site.offset_layers(-layer) for site in segment.frozen if site.layer == layer)
    return [
        between_blocks((block,), (mask,), resid, Site(0, Kind.RESID_PRE), end, held(layer))
        for layer, (block, mask, resid, end) in enumerate(
            zip(segment.blocks, segment.masks, entering, ends, strict=True)
        )
    ]


@jax.jit
def _entering(segment: Segment) -> list[Array]:
    sites = [Site(layer, Kind.RESID_PRE) for layer in range(1, len(segment.blocks))]
    return list(segment.record(sites).values())


@jax.jit
def mlp_matrices(segment: Segment) -> Float[Array, "seq d_model d_model"]:
    """For every position the matrix by which a covector (a row) of the end of the block becomes one of what its MLP reads."""
    seq, d_model = segment.resid.shape
    linear = linearise(segment)
    identity = jnp.tile(jnp.eye(d_model, dtype=segment.resid.dtype), (seq, 1))
    end = {Kind.RESID_POST: identity}
    middle = pull(linear.after, end, jnp.repeat(jnp.arange(seq, dtype=jnp.int32), d_model))[segment.blocks[0].mlp_reads]
    return middle.reshape(seq, d_model, d_model)


@ft.partial(jax.jit, static_argnames=("count", "reached", "budget"), donate_argnums=1)
def pull_block(
    segment: Segment,
    matrix: Matrix,
    mlps: Float[Array, "seq d_model d_model"] | None,
    begin: Int[Array, ""] | int,
    *,
    count: int,
    reached: int,
    budget: int = BUDGET,
) -> Matrix:
    """Pulls the rows of `count` targets from `begin` on, which are 0 from the position `reached` on, back through one block, in place."""
    linear = linearise(segment)
    positions = jnp.arange(reached, dtype=jnp.int32)
    flat, n = matrix.reshape(-1, *matrix.shape[2:]), count * matrix.shape[1]
    chunk = _chunk(
        n,
        reached,
        matrix.shape[3],
        0 if linear.heads is None else linear.heads.q.shape[1],
        matrix.dtype.itemsize,
        budget,
    )

    def some(i, flat):
        place = (begin * matrix.shape[1] + i * chunk, 0, 0)
        covectors = jax.lax.dynamic_slice(flat, place, (chunk, reached, flat.shape[2])).transpose(1, 0, 2)
        covectors = _pull(linear, covectors, mlps, positions, segment.blocks[0].mlp_reads)
        return jax.lax.dynamic_update_slice(flat, covectors.transpose(1, 0, 2), place)

    return jax.lax.fori_loop(0, n // chunk, some, flat).reshape(matrix.shape)


def _chunk(n: int, seq: int, d_model: int, heads: int, itemsize: int, budget: int) -> int:
    """Finds how many of `n` rows are pulled back at once: a divisor of `n`, as they are replaced by what is pulled."""
    # On a CPU what lies between two matrix products stays in a core's cache.
    limit = min(2**21 if jax.default_backend() == "cpu" else budget, budget // 8)
    most = max(1, limit // (itemsize * seq * (d_model + heads * seq)))
    return max(size for size in range(1, min(most, n) + 1) if n % size == 0)


def _pull(linear: LinearBlock, covectors: Rows, mlps: Array | None, positions: Int[Array, " seq"], read: Kind) -> Rows:
    def pull_each(links, items):
        return jax.vmap(lambda items: pull(links, items, positions), in_axes=1, out_axes=1)(items)

    items = {Kind.RESID_POST: covectors}
    if mlps is None:
        items = pull_each(linear.after, items)
    else:  # [seq n d_model] · [seq d_model d_model] -> [seq n d_model]
        items[read] = jnp.einsum("snd,sde->sne", covectors, take(mlps, positions))
        others = {Kind.Z, Kind.ATTN_OUT, Kind.RESID_PRE} - {read}  # what the matrices do not have
        items = pull_each([link for link in linear.after if link.source in others], items)
    if Kind.Z in items and linear.heads is not None and linear.heads.paths:
        items[Kind.LN1_NORMALIZED] = linear.heads.pull(items[Kind.Z], positions)
    kept = {kind: items[kind] for kind in (Kind.RESID_PRE, Kind.LN1_NORMALIZED) if kind in items}
    return pull_each(linear.entrance, kept).get(Kind.RESID_PRE, jnp.zeros_like(covectors))
