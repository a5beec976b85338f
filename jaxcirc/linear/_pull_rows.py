r"""Rows at many positions, pulled back through one block: each row has a covector at every position of a window.

At one position all rows meet the same MLP. Its matrix there, $J_{mlp}(s)$ `[d_model d_model]`, is one product of `W_out` by `W_in`, weighed
by the slopes between them: $2\,d_{mlp} d_{model}^2$ multiplications and additions, and $2\,d_{model}^2$ more a row, where a row by itself
costs $4\,d_{mlp} d_{model}$. So it is made, used and forgotten, position by position; attention, which mixes positions, takes a few rows at
a time.
"""

import dataclasses
import functools as ft
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._precision import widened
from .._sites import Kind, Site
from .._target import on_cpu
from ..models import is_known
from ..parts import GatedMLP
from ..runs import allowance
from ._block import linearise
from ._chain import behind_heads, chunk_of_rows, pulled
from ._cost import chunk_for
from ._forms import is_closed
from ._maps import LocalMap, pull
from ._segment import Segment, vjp


Rows = Float[Array, "window n d_model"]


def pull_rows(segment: Segment, rows: Rows, *, first: int, budget: int | None = None) -> Rows:
    """Pulls rows of what leaves a block back to what enters it, both the residual stream.

    The window begins at position `first`, and nothing behind it has a part in the rows: in a causal model nothing does whose covector is 0.
    `rows` may be overwritten.
    """
    budget = allowance(budget)
    if not is_closed(segment):
        return _by_autodiff(segment, rows, first=first, budget=budget)
    window, n, _ = rows.shape
    # One size of chunks on a CPU, where a program of two compiles twice as long; on an accelerator none is small for want of a divisor.
    chunk = chunk_of_rows(segment, n, window, budget, divides=on_cpu())
    matrices = _pay(segment, n)
    together = _positions_at_once(segment, window, n, budget, matrices=matrices)
    return _pull(segment, rows, first=first, chunk=chunk, together=together, matrices=matrices)


def _pay(segment: Segment, n: int) -> bool:
    """Whether the MLP is one whose matrix is a product of its weights, and that costs less than `n` rows do one by one."""
    block, d_model = segment.blocks[0], segment.resid.shape[1]
    if block.mlp is None or block.ln2_post is not None or not is_known(block, "mlp"):
        return False
    paths = 2 if isinstance(block.mlp, GatedMLP) else 1
    d_mlp = block.mlp.W_out.shape[0]
    each, matrix = (1 + paths) * d_mlp * d_model, paths * d_mlp * d_model**2
    return matrix + n * d_model**2 < n * each


def _positions_at_once(segment: Segment, window: int, n: int, budget: int, *, matrices: bool) -> int:
    """Finds at how many positions rows pass the MLP at once, or its matrices are made: at one on a CPU, where it is work enough."""
    if on_cpu():
        return 1
    block, d_model = segment.blocks[0], segment.resid.shape[1]
    hidden = block.mlp.W_out.shape[0] if block.mlp is not None and is_known(block, "mlp") else 4 * d_model
    # Of a position: the matrix on its way through the hidden layer, or the rows.
    held = 4 * hidden * max(d_model if matrices else n, 1)
    groups = -(-window * held * segment.resid.dtype.itemsize // budget)
    return -(-window // max(1, min(window, groups)))


@ft.partial(jax.jit, static_argnames=("first", "chunk", "together", "matrices"), donate_argnames="rows")
def _pull(segment: Segment, rows: Rows, *, first: int, chunk: int, together: int, matrices: bool) -> Rows:
    block, positions = segment.blocks[0], jnp.arange(first, first + len(rows), dtype=jnp.int32)
    attention = _of_attention(segment)
    through = pulled(attention, None, positions, keys=first + len(rows))
    if block.mlp is None:
        return _by_chunks(through, rows, chunk)
    of_mlp = _by_matrices(segment) if matrices else _row_by_row(segment)
    if block.has_middle:
        return _by_chunks(through, _add_at_positions(rows, None, of_mlp, positions, together), chunk)
    return _add_at_positions(_by_chunks(through, rows, chunk), rows, of_mlp, positions, together)


def head_means(
    segment: Segment, rows: Rows, weights: Float[Array, " window"], *, first: int, budget: int | None = None
) -> Float[Array, "head n d_model"]:
    r"""Of the means $\sum_s w_s\, \mathrm{rows}'_s$ of what `pull_rows` makes of rows, the part that each head of the block has: what comes
    of the rows by way of that head's output alone. `rows` are left as they are.
    """
    window, n, _ = rows.shape
    chunk = chunk_of_rows(segment, n, window, allowance(budget), divides=True)
    return _head_means(segment, rows, weights, first=first, chunk=chunk)


@ft.partial(jax.jit, static_argnames=("first", "chunk"))
def _head_means(segment: Segment, rows: Rows, weights: Float[Array, " window"], *, first: int, chunk: int):
    positions, linear = jnp.arange(first, first + len(rows), dtype=jnp.int32), linearise(segment)
    plane, heads = behind_heads(linear), segment.blocks[0].attn.W_Q.shape[0]
    back = pulled(segment, None, positions, keys=first + len(rows), end=plane)
    through = pulled(segment, None, positions, keys=first + len(rows), begin=plane)

    def some(i: Int[Array, ""]) -> Float[Array, "head chunk d_model"]:
        part = jax.lax.dynamic_slice_in_dim(rows, i * chunk, chunk, axis=1)
        at_z, beside = plane.split(back(part))
        z = at_z[Kind.Z].reshape(len(rows), chunk, heads, -1)

        def one(head: Int[Array, ""]) -> Float[Array, "chunk d_model"]:
            mine = jnp.where(jnp.arange(heads)[:, None] == head, z, 0).reshape(len(rows), chunk, -1)
            # [window] · [window chunk d_model] -> [chunk d_model]
            return jnp.einsum("w,wnd->nd", weights, through(plane.join({Kind.Z: mine}, jnp.zeros_like(beside))))

        return jax.lax.map(one, jnp.arange(heads))

    found = jax.lax.map(some, jnp.arange(rows.shape[1] // chunk))  # [part head chunk d_model]
    return found.transpose(1, 0, 2, 3).reshape(heads, rows.shape[1], -1)


def _of_attention(segment: Segment) -> Segment:
    """The part of a block that has its attention and what passes it by, and no MLP."""
    if segment.blocks[0].has_middle:
        return dataclasses.replace(segment, target=Site(0, Kind.RESID_MID), frozen=_before(segment, Kind.RESID_MID))
    return dataclasses.replace(segment, frozen=tuple(sorted({*segment.frozen, Site(0, Kind.MLP_OUT)})))


def _before(segment: Segment, kind: Kind) -> tuple[Site, ...]:
    return tuple(site for site in segment.frozen if site.kind < kind)


AtPosition = Callable[[Float[Array, "n d_model"], Int[Array, ""]], Float[Array, "n d_model"]]


def _by_matrices(segment: Segment) -> AtPosition:
    """Makes the map of covectors at one position through the MLP and its norm, by the matrix of both there."""
    after, mlp, read = linearise(segment).after, segment.blocks[0].mlp, segment.blocks[0].mlp_reads
    assert mlp is not None
    to_writing = widened(mlp).W_out.T  # covectors of the neurons, for each coordinate that the MLP writes

    def through(covectors: Float[Array, "n d_model"], position: Int[Array, ""]) -> Float[Array, "n d_model"]:
        matrix = _to_reading(after, {Kind.MLP_POST: to_writing}, position, read)
        # [n d_model] · [d_model d_model] -> [n d_model]
        return covectors @ matrix

    return through


def _row_by_row(segment: Segment) -> AtPosition:
    """Makes the same map by passing each covector through."""
    after, read = linearise(segment).after, segment.blocks[0].mlp_reads
    return lambda covectors, position: _to_reading(after, {Kind.MLP_OUT: covectors}, position, read)


def _to_reading(
    links: list[LocalMap], items: dict[Kind, Float[Array, "n _"]], position: Int[Array, ""], read: Kind
) -> Float[Array, "n d_model"]:
    """Pulls items inside the MLP at one position back to the residual stream that it reads."""
    (item,) = items.values()
    return pull(links, items, jnp.full(len(item), position, jnp.int32))[read]


def _add_at_positions(
    into: Rows, rows: Rows | None, through: AtPosition, positions: Int[Array, " window"], together: int
) -> Rows:
    """Adds to `into` what comes of rows at each position, `together` of them at a time; `None` for rows that are `into` itself."""

    def some(into: Rows, begin: Int[Array, ""] | int, count: int) -> Rows:
        cut = lambda x: jax.lax.dynamic_slice_in_dim(x, begin, count)
        image = jax.vmap(through)(cut(into if rows is None else rows), cut(positions))
        return jax.lax.dynamic_update_slice_in_dim(into, cut(into) + image, begin, axis=0)

    return _in_parts(some, into, len(into), together)


def _by_chunks(through: Callable[[Rows], Rows], rows: Rows, chunk: int) -> Rows:
    """Passes a few rows at a time through a map of all positions."""

    def some(rows: Rows, begin: Int[Array, ""] | int, count: int) -> Rows:
        part = jax.lax.dynamic_slice_in_dim(rows, begin, count, axis=1)
        return jax.lax.dynamic_update_slice_in_dim(rows, through(part), begin, axis=1)

    return _in_parts(some, rows, rows.shape[1], chunk)


def _in_parts(change: Callable[[Rows, Int[Array, ""] | int, int], Rows], rows: Rows, count: int, size: int) -> Rows:
    """Changes rows in place, in parts of `size` and one of the rest, each given by where it begins and how long it is."""
    whole, rest = divmod(count, size)
    rows = jax.lax.fori_loop(0, whole, lambda i, rows: change(rows, i * size, size), rows)
    return change(rows, whole * size, rest) if rest else rows


def _by_autodiff(segment: Segment, rows: Rows, *, first: int, budget: int) -> Rows:
    """Pulls rows back by the block's own code: also of parts that mix positions."""
    window, seq = len(rows), segment.resid.shape[0]
    padded = jnp.pad(rows.transpose(1, 0, 2), ((0, 0), (first, seq - first - window), (0, 0)))
    found = vjp(segment, padded, chunk=chunk_for((segment,), budget))
    return found[:, first : first + window].transpose(1, 0, 2)
