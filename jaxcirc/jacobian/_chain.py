r"""Full Jacobians through several blocks in closed form: columns are made by the first block and pushed through the others.

The columns of source positions $s \ge s_0$ are 0 before position $s_0$, so a few groups of them, each cut to the positions it can
reach, do half the work. Within a block attention costs four projections of each column; the MLP with its norm is one matrix a position,
$I + J_{mlp}(t)$ [d_model d_model], made once and used for every column.
"""

import functools as ft
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._sites import Kind, Site
from ._contract import contract_block, sizes_for
from ._links import Heads, linearise, pull, push, rows
from ._memory import BUDGET
from ._positions import every_unit
from ._span import between_blocks, Span


Columns = Float[Array, "seq n d_model"]


def chain_columns(
    span: Span, source_pos: np.ndarray, *, budget: int = BUDGET, groups: int | None = None
) -> Iterator[tuple[np.ndarray, Array]]:
    """Yields `(positions, J[:, :, positions, :])` for groups of the source positions, in ascending order: `[seq d_model s d_model]`."""
    seq, d_model = span.resid.shape
    first, *rest = split(span)
    size = span.resid.dtype.itemsize
    reached = first.masks[0].shape[0]
    heads = span.blocks[0].attn.W_Q.shape[0]
    # Every group has its own shapes and is compiled apart, which only work of a second or so makes up for.
    groups = groups or (4 if len(span.blocks) * seq**2 * d_model**3 > 1e10 else 1)
    causal = bool(not np.triu(np.asarray(jnp.stack(span.masks)), 1).any())
    # Held at once: the columns, their heads' images, a head's scores.
    each = size * d_model * (8 * seq * d_model + 2 * seq * seq)
    most = max(1, min(-(-len(source_pos) // groups), budget // each))
    matrices = [mlp_matrices(block) if len(span.blocks) * seq * d_model**2 * size <= budget else None for block in rest]
    for positions in np.array_split(source_pos, -(-len(source_pos) // most)):
        begin = int(positions.min()) // max(1, seq // groups) * max(1, seq // groups) if causal else 0
        targets = np.arange(begin, seq)
        units = lambda positions: every_unit(positions, len(positions) * d_model)
        sizes = sizes_for(len(targets) * d_model, len(positions) * d_model, reached, heads, d_model, size, budget)
        block = contract_block(first, *units(targets), *units(positions), sizes=sizes)
        columns = block.reshape(len(targets), d_model, -1).transpose(0, 2, 1)
        for following, matrix in zip(rest, matrices, strict=True):
            columns = push_block(following, columns, matrix, begin=begin)
        out = columns.transpose(0, 2, 1).reshape(len(targets), d_model, len(positions), d_model)
        yield positions, jnp.pad(out, ((begin, 0), (0, 0), (0, 0), (0, 0)))


def split(span: Span) -> list[Span]:
    """The span block by block: what enters each, and which of its sites are held."""
    entering, last = [span.resid, *_entering(span)], len(span.blocks) - 1
    ends = [Site(0, Kind.RESID_POST)] * last + [span.target.shift(-last)]
    held = lambda layer: (site.shift(-layer) for site in span.frozen if site.layer == layer)
    return [
        between_blocks((block,), (mask,), resid, Site(0, Kind.RESID_PRE), end, held(layer))
        for layer, (block, mask, resid, end) in enumerate(zip(span.blocks, span.masks, entering, ends, strict=True))
    ]


@jax.jit
def _entering(span: Span) -> list[Array]:
    sites = [Site(layer, Kind.RESID_PRE) for layer in range(1, len(span.blocks))]
    return list(span.record(sites).values())


@jax.jit
def mlp_matrices(span: Span) -> Float[Array, "seq d_model d_model"]:
    """For every position the matrix by which a tangent (a row) of the middle of the block becomes one of its end."""
    seq, d_model = span.resid.shape
    linear = linearise(span, 0, frozenset(site.kind for site in span.frozen))
    identity = jnp.tile(jnp.eye(d_model, dtype=span.resid.dtype), (seq, 1))
    end = {Kind.RESID_POST: identity}
    rows = pull(linear.after, end, jnp.repeat(jnp.arange(seq, dtype=jnp.int32), d_model))[Kind.RESID_MID]
    return rows.reshape(seq, d_model, d_model).transpose(0, 2, 1)


@ft.partial(jax.jit, static_argnames="begin", donate_argnums=1)
def push_block(
    span: Span, columns: Columns, matrices: Float[Array, "whole_seq d_model d_model"] | None, *, begin: int
) -> Columns:
    """Pushes tangents at the positions from `begin` on, `[seq n d_model]`, through one block."""
    linear = linearise(span, 0, frozenset(site.kind for site in span.frozen))
    positions = jnp.arange(begin, begin + columns.shape[0], dtype=jnp.int32)
    push_each = lambda links, items: jax.vmap(lambda items: push(links, items, positions), in_axes=1, out_axes=1)(items)
    items = {Kind.RESID_PRE: columns}
    normalized = push_each(linear.before[:1], items).get(Kind.LN1_NORMALIZED)
    if normalized is not None and linear.heads.paths:
        items[Kind.Z] = _attend(linear.heads, normalized, positions)
    if matrices is None:
        return push_each(linear.after, items)[Kind.RESID_POST]
    middle = push_each([link for link in linear.after if link.target <= Kind.RESID_MID], items)[Kind.RESID_MID]
    # [seq n d_model] · [seq d_model d_model] -> [seq n d_model]
    return jnp.einsum("snd,sde->sne", middle, matrices[begin:])


def _attend(heads: Heads, x: Columns, positions: Int[Array, " seq"]) -> Float[Array, "seq n d_z"]:
    """The tangents of attention's output `z`, flat, one head after another so that one head's scores are held at a time.

    `dz_q = sum_k A_qk (dv_k + dS_qk (v_k - z_q))`, where the tangents of values and keys begin at the first position of `x`, and those
    of queries meet the keys of all.
    """
    pattern, z = rows(heads.pattern.transpose(1, 0, 2), positions), jnp.einsum("hqk,khd->qhd", heads.pattern, heads.v)
    of_heads = lambda array: rows(array, positions).transpose(1, 0, 2)  # [head seq d_head]
    everything = lambda array: array.transpose(1, 0, 2)
    arrays = (heads.W_Q, heads.W_K, heads.W_V, pattern.transpose(1, 0, 2), of_heads(heads.q), of_heads(z))

    def head(arrays):
        (W_Q, W_K, W_V, pattern, q, z), k, v = arrays
        moved = lambda scores, v: jnp.einsum("qkn,kd->qnd", scores, v) - scores.sum(1)[..., None] * z[:, None]
        near = rows(pattern.T, positions).T  # of the keys that carry tangents
        out = jnp.zeros((*x.shape[:2], v.shape[-1]), x.dtype)
        if Kind.V in heads.paths:  # [q_seq k_seq] · [k_seq n d_head] -> [q_seq n d_head]
            out += jnp.einsum("qk,knd->qnd", near, x @ W_V)
        if Kind.K in heads.paths:
            scores = jnp.einsum("qd,knd->qkn", q, x @ W_K) * near[..., None] * heads.scale
            out += moved(scores, rows(v, positions))
        if Kind.Q in heads.paths:
            out += moved(jnp.einsum("qnd,kd->qkn", x @ W_Q, k) * pattern[..., None] * heads.scale, v)
        return out

    out = jax.lax.map(head, (arrays, everything(heads.k), everything(heads.v)))
    return out.transpose(1, 2, 0, 3).reshape(*x.shape[:2], -1)
