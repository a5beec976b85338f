"""Bilinear forms of several segments, one after another: items are folded through what is local, and meet at what is not."""

import dataclasses
import functools as ft
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._sites import Part, Site
from ..runs import BUDGET, halving
from ._block import linearise
from ._contract import contract_block, sizes_for
from ._cost import chunk_for, heads_of
from ._ends import source_vectors, target_covectors
from ._forms import is_closed, is_folded, is_local, read_site
from ._maps import pull as pull_links, push as push_links
from ._segment import Span
from ._sweep import contract_spans


Spans = tuple[Span, ...]
Items = Float[Array, "_ _"] | Int[Array, " _"]  # left and right differ in both
Positions = Int[Array, " _"]


def plan_of(spans: Spans) -> tuple[Spans, Span, Spans] | None:
    """Local spans, one span that may go through attention, local spans; `None` if the product of spans is not of that form."""
    if not all(map(is_closed, spans)):
        return None
    mixing = [i for i, span in enumerate(spans) if not is_local(span)]
    if len(mixing) > 1:
        return None
    at = mixing[0] if mixing else len(spans) - 1
    return spans[:at], spans[at], spans[at + 1 :]


def contract_by_plan(
    spans: Spans, left: Items, left_pos: Positions, right: Items, right_pos: Positions, budget: int
) -> Float[Array, "m k"]:
    """Bilinear forms in closed form: items are carried through what is local, and meet at what is not."""
    plan = plan_of(spans)
    assert plan is not None
    before, middle, after = plan
    for span in reversed(after):
        left = fold_left(span, left, left_pos)
    for span in before:
        right = fold_right(span, right, right_pos)
    (seq, d_model), heads = middle.resid.shape, heads_of(middle)
    size = ft.partial(sizes_for, len(left_pos), len(right_pos), seq, heads, d_model, middle.resid.dtype.itemsize)
    compute = lambda budget: contract_block(middle, left, left_pos, right, right_pos, sizes=size(budget))
    return halving(compute, budget, "the memory budget")


def contract_by_sweeps(
    spans: Spans, left: Items, left_pos: Positions, right: Items, right_pos: Positions, budget: int
) -> Float[Array, "m k"]:
    """Bilinear forms by autodiff, of any spans. Dictionaries at the ends are folded into the items all the same."""
    first, last = spans[0], spans[-1]
    if is_folded(last):
        left, last = fold_covectors(last, left, left_pos), with_ends(last, target=read_site(last))
    if is_folded(first):
        right = fold_vectors(first, right, right_pos)
        first = with_ends(last if len(spans) == 1 else first, source=first.source.value)
    spans = (first,) if len(spans) == 1 else (first, *spans[1:-1], last)
    dense = lambda items, end: (
        items if items.ndim > 1 else jax.nn.one_hot(items, math.prod(end.shape[1:]), dtype=end.dtype)
    )
    left, right = dense(left, spans[-1].ends()[1]), dense(right, spans[0].ends()[0])
    forward = len(right_pos) < len(left_pos)
    chunk = min(chunk_for(spans, budget), len(right_pos if forward else left_pos))
    compute = lambda chunk: contract_spans(spans, left, left_pos, right, right_pos, chunk=chunk, forward=forward)
    return halving(compute, chunk, "the chunk of sweeps")


def contract_batch(
    span: Span,
    masks: tuple[Array, ...],
    resid: Float[Array, "batch seq d_model"],
    shift: Float[Array, "batch ..."] | None,
    left: Float[Array, "batch m d_target"],
    left_pos: Int[Array, "batch m"],
    right: Float[Array, "batch k d_source"],
    right_pos: Int[Array, "batch k"],
    *,
    budget: int = BUDGET,
) -> Float[Array, "batch m k"]:
    """`left_m^T J right_k` for every example of a batch: `masks`, `resid` and `shift` are theirs, the rest of the span is shared."""
    (seq, d_model), (m, k) = span.resid.shape, (left.shape[1], right.shape[1])
    if is_closed(span):
        heads = heads_of(span)
        sizes = sizes_for(m, k, seq, heads, d_model, span.resid.dtype.itemsize, budget)
        return _batch(span, masks, resid, shift, left, left_pos, right, right_pos, sizes=sizes, sweep=None)
    forward = k < m
    sweep = (min(max(1, chunk_for([span], budget) // len(resid)), k if forward else m), forward)
    return _batch(span, masks, resid, shift, left, left_pos, right, right_pos, sizes=None, sweep=sweep)


@ft.partial(jax.jit, static_argnames=("sizes", "sweep"))
def _batch(span: Span, masks, resid, shift, left, left_pos, right, right_pos, *, sizes, sweep):
    def one(masks, resid, shift, *items):
        example = dataclasses.replace(span, masks=masks, resid=resid, shift=shift)
        if sizes is not None:
            return contract_block(example, *items, sizes=sizes)
        chunk, forward = sweep
        return contract_spans((example,), *items, chunk=chunk, forward=forward)

    return jax.vmap(one)(masks, resid, shift, left, left_pos, right, right_pos)


@jax.jit
def fold_vectors(span: Span, items: Array, positions: Array) -> Array:
    """Vectors at the source's site, from items in the source's coordinates."""
    return source_vectors(span)(items, positions)


@jax.jit
def fold_covectors(span: Span, items: Array, positions: Array) -> Array:
    return target_covectors(span)(items, positions)


@jax.jit
def fold_left(span: Span, items: Array, positions: Array) -> Array:
    """Covectors of the target of a local span as covectors of its source."""
    linear, source = linearise(span, 0, span.held), span.source
    covectors = {read_site(span).kind: target_covectors(span)(items, positions)}
    pulled = pull_links(linear.maps, covectors, positions)[source.kind]
    if source.part not in (Part.ACTS, Part.INPUT):
        return pulled
    like = jax.ShapeDtypeStruct((len(positions), math.prod(span.ends()[0].shape[1:])), pulled.dtype)
    return jax.linear_transpose(lambda items: source_vectors(span)(items, positions), like)(pulled)[0]


@jax.jit
def fold_right(span: Span, items: Array, positions: Array) -> Array:
    """Vectors of the source of a local span as vectors of its target."""
    linear, target = linearise(span, 0, span.held), span.target
    pushed = push_links(linear.maps, {span.source.kind: source_vectors(span)(items, positions)}, positions)
    value = pushed[read_site(span).kind]
    if target.part in (Part.VALUE, Part.INPUT):
        return value
    unfold = target_covectors(span)
    like = jax.ShapeDtypeStruct((len(positions), math.prod(span.ends()[1].shape[1:])), value.dtype)
    return jax.vjp(lambda items: unfold(items, positions), jnp.zeros(like.shape, like.dtype))[1](value)[0]


def with_ends(span: Span, *, source: Site | None = None, target: Site | None = None) -> Span:
    """The span between other sites of the same blocks."""
    source, target = source or span.source, target or span.target
    needed = {site.value for site in (source, target, *span.frozen) if site.part != Part.VALUE}
    saes = {site: sae for site, sae in span.saes.items() if site in needed}
    return dataclasses.replace(span, source=source, target=target, saes=saes)
