"""Bilinear forms of several segments, one after another: items are folded through what is local, and meet at what is not."""

import dataclasses
import functools as ft
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Part
from ..runs import allowance, halving
from ._block import linearise
from ._chain_contract import contract_chain
from ._contract import contract_block, contract_laid_out, lay_out, sizes_for
from ._cost import chunk_for
from ._ends import source_vectors, target_covectors
from ._forms import attends, is_closed, is_folded, read_site
from ._maps import pull as pull_links, push as push_links
from ._segment import Segment
from ._steps import bare_end, bare_start, fold_covectors, fold_vectors, Segments, steps_of
from ._sweep import contract_segments


Items = Float[Array, "_ _"] | Int[Array, " _"]  # left and right differ in both
Positions = Int[Array, " _"]


def is_contraction(segments: Segments) -> bool:
    """Whether segments, each in closed form, are one contraction between local maps: at most one of them mixes positions."""
    return all(map(is_closed, segments)) and sum(map(attends, segments)) <= 1


def contract_by_plan(
    segments: Segments, left: Items, left_pos: Positions, right: Items, right_pos: Positions, budget: int
) -> Float[Array, "m k"]:
    """Bilinear forms in closed form: items are carried through what is local at either end, and meet between."""
    mixing = [i for i, segment in enumerate(segments) if attends(segment)] or [len(segments) - 1]
    for segment in reversed(segments[mixing[-1] + 1 :]):
        left = fold_left(segment, left, left_pos)
    for segment in segments[: mixing[0]]:
        right = fold_right(segment, right, right_pos)
    middle, *others = segments[mixing[0] : mixing[-1] + 1]
    if others:
        between = (middle, *others)
        compute = lambda budget: contract_chain(between, left, left_pos, right, right_pos, budget)
    else:
        size = ft.partial(sizes_for, middle, len(left_pos), len(right_pos))
        compute = lambda budget: contract_block(middle, left, left_pos, right, right_pos, sizes=size(budget))
    return halving(compute, budget, "the memory budget")


def contract_by_steps(
    segments: Segments, left: Items, left_pos: Positions, right: Items, right_pos: Positions, budget: int
) -> Float[Array, "m k"]:
    """Bilinear forms in closed form of segments of several blocks, cut into steps of one block each."""
    left, right = fold_covectors(segments[-1], left, left_pos), fold_vectors(segments[0], right, right_pos)
    return contract_by_plan(steps_of(bare_start(bare_end(segments))), left, left_pos, right, right_pos, budget)


def contract_by_sweeps(
    segments: Segments, left: Items, left_pos: Positions, right: Items, right_pos: Positions, budget: int
) -> Float[Array, "m k"]:
    """Bilinear forms by autodiff, of any segments. Dictionaries at the ends are folded into the items all the same."""
    first, last = segments[0], segments[-1]
    if is_folded(last):
        left, segments = fold_covectors(last, left, left_pos), bare_end(segments)
    if is_folded(first):
        right, segments = fold_vectors(first, right, right_pos), bare_start(segments)
    dense = lambda items, end: (
        items if items.ndim > 1 else jax.nn.one_hot(items, math.prod(end.shape[1:]), dtype=end.dtype)
    )
    left, right = dense(left, segments[-1].shapes()[1]), dense(right, segments[0].shapes()[0])
    forward = len(right_pos) < len(left_pos)
    chunk = min(chunk_for(segments, budget), len(right_pos if forward else left_pos))
    compute = lambda chunk: contract_segments(segments, left, left_pos, right, right_pos, chunk=chunk, forward=forward)
    return halving(compute, chunk, "the chunk of sweeps")


def contract_batch(
    segment: Segment,
    masks: tuple[Array, ...],
    resid: Float[Array, "batch seq d_model"],
    displacement: Float[Array, "batch ..."] | None,
    left: Float[Array, "batch m d_target"],
    left_pos: Int[Array, "batch m"],
    right: Float[Array, "batch k d_source"],
    right_pos: Int[Array, "batch k"],
    *,
    budget: int | None = None,
) -> Float[Array, "batch m k"]:
    """`left_m^T J right_k` for every example of a batch: `masks`, `resid` and `displacement` are theirs, the rest is shared."""
    budget, m, k = allowance(budget), left.shape[1], right.shape[1]
    if is_closed(segment):
        sizes = sizes_for(segment, m, k, budget)
        layout = lay_out(segment, left_pos, right_pos, sizes)
        return _batch(
            segment, masks, resid, displacement, layout, left, left_pos, right, right_pos, sizes=sizes, sweep=None
        )
    forward = k < m
    sweep = (min(max(1, chunk_for([segment], budget) // len(resid)), k if forward else m), forward)
    return _batch(segment, masks, resid, displacement, None, left, left_pos, right, right_pos, sizes=None, sweep=sweep)


@ft.partial(jax.jit, static_argnames=("sizes", "sweep"))
def _batch(segment: Segment, masks, resid, displacement, layout, left, left_pos, right, right_pos, *, sizes, sweep):
    def one(masks, resid, displacement, layout, *items):
        example = dataclasses.replace(segment, masks=masks, resid=resid, displacement=displacement)
        if sizes is not None:
            return contract_laid_out(example, layout, *items, sizes=sizes)
        chunk, forward = sweep
        return contract_segments((example,), *items, chunk=chunk, forward=forward)

    return jax.vmap(one)(masks, resid, displacement, layout, left, left_pos, right, right_pos)


@jax.jit
def fold_left(segment: Segment, items: Array, positions: Array) -> Array:
    """Covectors of the target of a local segment as covectors of its source."""
    linear, source = linearise(segment), segment.source
    covectors = {read_site(segment).kind: target_covectors(segment)(items, positions)}
    pulled = pull_links(linear.maps, covectors, positions)[source.kind]
    if source.part not in (Part.ACTS, Part.INPUT):
        return pulled
    like = jax.ShapeDtypeStruct((len(positions), math.prod(segment.shapes()[0].shape[1:])), pulled.dtype)
    return jax.linear_transpose(lambda items: source_vectors(segment)(items, positions), like)(pulled)[0]


@jax.jit
def fold_right(segment: Segment, items: Array, positions: Array) -> Array:
    """Vectors of the source of a local segment as vectors of its target."""
    linear, target = linearise(segment), segment.target
    pushed = push_links(linear.maps, {segment.source.kind: source_vectors(segment)(items, positions)}, positions)
    value = pushed[read_site(segment).kind]
    if target.part in (Part.VALUE, Part.INPUT):
        return value
    unfold = target_covectors(segment)
    like = jax.ShapeDtypeStruct((len(positions), math.prod(segment.shapes()[1].shape[1:])), value.dtype)
    return jax.vjp(lambda items: unfold(items, positions), jnp.zeros(like.shape, like.dtype))[1](value)[0]
