r"""Sweeps through blocks in closed form: covectors at all positions are pulled back through one block, or vectors pushed.

The rows of target position `t` are 0 at the positions after it, and what leaves position `s` is 0 before it. So a few groups of them,
each in a window of positions, do half the work. Within a block attention costs four projections of each row; the MLP with its norm is one
matrix a position, $I + J_{mlp}(s)$ [d_model d_model], which is made once where there are so many rows that it saves more than it costs.
"""

import functools as ft
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._sites import Kind
from .._target import on_cpu
from ..runs import allowance
from ._block import LinearBlock, linearise
from ._cost import heads_of
from ._dense import block_matrix
from ._maps import Positions, pull
from ._segment import Segment
from ._steps import steps_of


Rows = Float[Array, "seq n _"]
AnyItems = Float[Array, "n _"]  # of kinds that differ in width
MLPs = Float[Array, "seq d_model d_model"]
Matrix = Float[Array, "t d_target seq d_model"]


def chain_matrix(
    segment: Segment, target_pos: np.ndarray, *, budget: int | None = None, groups: int | None = None
) -> Float[Array, "t d_model seq d_model"]:
    """`J[target_pos]`, holding its result and the budget. `groups`: into how many parts, each cut to what they reach, the rows go."""
    seq, d_model = segment.resid.shape
    budget = allowance(budget)
    *rest, last = steps_of((segment,))
    groups = groups or how_many_windows(len(segment.blocks) * seq**2 * d_model**3)
    causal = is_causal((segment,))
    everywhere = jnp.arange(seq, dtype=jnp.int32)
    matrix = block_matrix(last, jnp.asarray(target_pos, jnp.int32), everywhere, budget=budget)
    for block in reversed(rest):
        mlps = mlp_matrices(block) if pay_matrices(block, len(target_pos) * d_model, budget) else None
        for part in np.array_split(np.arange(len(target_pos)), min(groups, len(target_pos))):
            reached = int(target_pos[part].max()) + 1 if causal else seq
            matrix = pull_block(block, matrix, mlps, int(part[0]), count=len(part), reached=reached, budget=budget // 2)
    return matrix


def is_causal(segments: tuple[Segment, ...]) -> bool:
    """Whether no query attends to a later key. The masks are looked at: they must be there, and not under a transformation."""
    return not any(np.triu(np.asarray(mask), 1).any() for segment in segments for mask in segment.masks)


def how_many_windows(work: int) -> int:
    """Finds into how many groups rows go, each in its window: every one has its own shapes and is compiled apart, which only work of a
    second or so makes up for.
    """
    work //= 1 if on_cpu() else 1024  # so much more an accelerator does in that second, and compiling takes it longer
    return 1 if work < 1e9 else 2 if work < 1e11 else 4 if work < 5e11 else 8


def pay_matrices(segment: Segment, rows: int, budget: int) -> bool:
    """Whether matrices of the MLP at all positions fit into half the budget, and save `rows`, about half of whose positions are reached,
    more than they cost: a row costs 2 d_model^2 a position with them and 16 without, and they are d_model rows at each.
    """
    seq, d_model = segment.resid.shape
    whole = (segment.source.kind, segment.target.kind) == (Kind.RESID_PRE, Kind.RESID_POST)
    fit = seq * d_model**2 * segment.resid.dtype.itemsize <= budget // 2
    return whole and fit and segment.blocks[0].mlp is not None and 7 * rows > 16 * d_model


@jax.jit
def mlp_matrices(segment: Segment) -> MLPs:
    """For every position the matrix by which a covector (a row) of the end of the block becomes one of what its MLP reads."""
    seq, d_model = segment.resid.shape
    linear = linearise(segment)
    identity = jnp.tile(jnp.eye(d_model, dtype=segment.resid.dtype), (seq, 1))
    end = {Kind.RESID_POST: identity}
    middle = pull(linear.after, end, jnp.repeat(jnp.arange(seq, dtype=jnp.int32), d_model))[segment.blocks[0].mlp_reads]
    return middle.reshape(seq, d_model, d_model)


def pull_block(
    segment: Segment,
    matrix: Matrix,
    mlps: MLPs | None,
    begin: Int[Array, ""] | int,
    *,
    count: int,
    reached: int,
    budget: int | None = None,
) -> Matrix:
    """Pulls the rows of `count` targets from `begin` on, which are 0 from the position `reached` on, back through one block, in place."""
    chunk = chunk_of_rows(segment, count * matrix.shape[1], reached, allowance(budget), divides=True)
    return pull_chunks(segment, matrix, mlps, begin, count=count, reached=reached, chunk=chunk)


@ft.partial(jax.jit, static_argnames=("count", "reached", "chunk"), donate_argnums=1)
def pull_chunks(
    segment: Segment,
    matrix: Matrix,
    mlps: MLPs | None,
    begin: Int[Array, ""] | int,
    *,
    count: int,
    reached: int,
    chunk: int,
) -> Matrix:
    """The same, `chunk` rows at a time."""
    flat, n = matrix.reshape(-1, *matrix.shape[2:]), count * matrix.shape[1]
    through = pulled(segment, mlps, jnp.arange(reached, dtype=jnp.int32), keys=reached)

    def some(i, flat):
        place = (begin * matrix.shape[1] + i * chunk, 0, 0)
        covectors = jax.lax.dynamic_slice(flat, place, (chunk, reached, flat.shape[2])).transpose(1, 0, 2)
        return jax.lax.dynamic_update_slice(flat, through(covectors).transpose(1, 0, 2), place)

    return jax.lax.fori_loop(0, n // chunk, some, flat).reshape(matrix.shape)


def chunk_of_rows(segment: Segment, n: int, window: int, budget: int, *, divides: bool = False) -> int:
    """Finds how many of `n` rows pass a block at once; a divisor of `n` where they are replaced by what comes of them, and else such that
    all chunks are about full.
    """
    heads, width = heads_of(segment), segment.resid.shape[1]
    # On a CPU what lies between two matrix products stays in a core's cache.
    limit = min(2**22 if on_cpu() else budget, budget // 8)
    most = min(n, max(1, limit // (segment.resid.dtype.itemsize * window * (width + heads * window))))
    return max(size for size in range(1, most + 1) if n % size == 0) if divides else -(-n // -(-n // most))


class Plane(NamedTuple):
    """Where a one-block segment is cut: at the values of `kinds`, and at the source for what passes by them, side by side on one axis."""

    kinds: tuple[Kind, ...]
    widths: tuple[int, ...]

    def join(self, items: Mapping[Kind, Array], beside: Array) -> Array:
        """Puts the items of all kinds, and what is `beside` them, into one array."""
        none = lambda width: jnp.zeros((*beside.shape[:-1], width), beside.dtype)
        each = [
            items[kind] if kind in items else none(width) for kind, width in zip(self.kinds, self.widths, strict=True)
        ]
        return jnp.concatenate([*each, beside], axis=-1)

    def split(self, joined: Array) -> tuple[dict[Kind, Array], Array]:
        """Takes apart what `join` has put together."""
        *each, beside = jnp.split(joined, np.cumsum(self.widths), axis=-1)
        return dict(zip(self.kinds, each, strict=True)), beside


def before_heads(linear: LinearBlock) -> Plane:
    """The plane of the queries, keys and values of a block, those that are live."""
    heads = linear.heads
    assert heads is not None
    return Plane(tuple(heads.inputs), tuple(heads.inputs.values()))


def behind_heads(linear: LinearBlock) -> Plane:
    """The plane of attention's output."""
    assert linear.heads is not None
    return Plane((Kind.Z,), (linear.heads.z[0].size,))


def pulled(
    segment: Segment,
    mlps: MLPs | None,
    positions: Int[Array, " window"],
    *,
    keys: int,
    begin: Plane | None = None,
    end: Plane | None = None,
) -> Callable[[Rows], Rows]:
    """Makes the map from covectors of a one-block segment's target, or of a plane in it at which it is to `begin`, to covectors of its
    source, or of the plane at which it is to `end`; at all `positions` of a window, whose queries attend to nothing behind the first
    `keys` positions.
    """
    linear = linearise(segment)

    def around(covectors: Rows) -> tuple[dict[Kind, Rows], Rows]:
        """Pulls them back to attention's output, and past attention to the source."""
        items = {segment.target.kind: covectors}
        if mlps is None:
            items = _pull_each(linear.after, items, positions)
        else:  # [seq n d_model] · [seq d_model d_model] -> [seq n d_model]
            read = segment.blocks[0].mlp_reads
            items[read] = jnp.einsum("snd,sde->sne", covectors, take(mlps, positions))
            apart = lambda kind: kind != read and kind <= Kind.ATTN_OUT  # what the matrices do not have
            items = _pull_each([link for link in linear.after if apart(link.source)], items, positions)
        each = lambda items: around_heads(segment, linear, items, positions)
        return jax.vmap(each, in_axes=1, out_axes=1)(items)

    def through(covectors: Rows) -> Rows:
        at_z, beside = around(covectors) if begin is None else begin.split(covectors)
        if end is not None and Kind.Z in end.kinds:
            return end.join(at_z, beside)
        heads = linear.heads if at_z and linear.heads is not None and linear.heads.paths else None
        inputs = {} if heads is None else heads.pull(at_z[Kind.Z], positions, keys=keys)
        if end is not None:
            return end.join(inputs, beside)
        into = _pull_each(linear.before, inputs, positions) if inputs else {}
        return beside + into[segment.source.kind] if segment.source.kind in into else beside

    return through


def around_heads(
    segment: Segment, linear: LinearBlock, items: dict[Kind, AnyItems], positions: Positions
) -> tuple[dict[Kind, AnyItems], AnyItems]:
    """Parts covectors that were pulled back through what is behind attention: those of attention's output, if it is on the way, and those
    of the source, pulled past attention.
    """
    source = segment.source.kind
    past = {kind: item for kind, item in items.items() if kind != Kind.Z or source >= Kind.Z}
    found = pull(linear.before, past, positions)
    none = jnp.zeros((len(positions), math.prod(segment.shapes()[0].shape[1:])), segment.resid.dtype)
    return {kind: item for kind, item in items.items() if kind not in past}, found.get(source, none)


def _pull_each(links, items: dict[Kind, Rows], positions: Int[Array, " seq"]) -> dict[Kind, Rows]:
    return jax.vmap(lambda items: pull(links, items, positions), in_axes=1, out_axes=1)(items)
