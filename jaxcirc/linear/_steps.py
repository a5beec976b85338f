"""A product of segments cut where blocks meet: steps of one block each, of which each is in closed form."""

import dataclasses
import itertools
from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from .._sites import Kind, Part, Site
from .._typing import Resid
from ._ends import source_vectors, target_covectors
from ._forms import attends, is_closed, is_folded, read_site
from ._segment import between_blocks, Segment


Segments = tuple[Segment, ...]


def steps_of(segments: Segments) -> Segments:
    """Cuts segments, whose outer ends are values, into steps of one block each, with what enters each block in the clean run."""
    return tuple(step for segment in segments for step in _cut(segment, [segment.resid, *_entering(segment)]))


def are_steps_closed(segments: Segments) -> bool:
    """Whether a product of segments, dictionaries at its outer ends folded into what comes from there, is cut into steps in closed form."""
    first, last = segments[0], segments[-1]
    inner = [site for before, after in itertools.pairwise(segments) for site in (before.target, after.source)]
    if any(segment.outside is not None for segment in segments) or any(site.part != Part.VALUE for site in inner):
        return False
    if not all(map(is_folded, (first, last))):
        return False
    steps = [
        step
        for segment in bare_start(bare_end(segments))
        for step in _cut(segment, [segment.resid] * len(segment.blocks))
    ]
    if not all(map(is_closed, steps)):
        return False
    mixing = [step for step in steps if attends(step)]
    return len(mixing) < 2 or mixing[-1].source.kind <= Kind.ATTN_IN  # which rows are spread to


def bare_start(segments: Segments) -> Segments:
    """The same segments, from the site that the dictionary at the source writes."""
    first, *others = segments
    return _with_ends(first, source=first.source.value), *others


def bare_end(segments: Segments) -> Segments:
    """The same segments, to the site that the dictionary at the target reads."""
    *others, last = segments
    return *others, _with_ends(last, target=read_site(last))


def _with_ends(segment: Segment, *, source: Site | None = None, target: Site | None = None) -> Segment:
    """The segment between other sites of the same blocks."""
    source, target = source or segment.source, target or segment.target
    needed = {site.value for site in (source, target, *segment.frozen) if site.part != Part.VALUE}
    saes = {site: sae for site, sae in segment.saes.items() if site in needed}
    return dataclasses.replace(segment, source=source, target=target, saes=saes)


def _cut(segment: Segment, entering: Sequence[Resid]) -> list[Segment]:
    """Cuts a segment block by block, given what enters each: every step has its own held sites."""
    last = segment.target.layer or 0
    begins = [segment.source] + [Site(0, Kind.RESID_PRE)] * last
    ends = [Site(0, Kind.RESID_POST)] * last + [segment.target.offset_layers(-last)]
    held = lambda layer: (site.offset_layers(-layer) for site in segment.frozen if site.layer == layer)
    moved = lambda layer: None if layer else segment.displacement
    # What reads before the end leaves blocks over.
    blocks = zip(segment.blocks, segment.masks, entering, begins, ends, strict=False)
    return [
        between_blocks((block,), (mask,), resid, begin, end, held(layer), moved(layer))
        for layer, (block, mask, resid, begin, end) in enumerate(blocks)
    ]


@jax.jit
def _entering(segment: Segment) -> list[Array]:
    sites = [Site(layer, Kind.RESID_PRE) for layer in range(1, len(segment.blocks))]
    return list(segment.record(sites).values())


@jax.jit
def fold_vectors(segment: Segment, items: Array, positions: Array) -> Float[Array, "k d_source"]:
    """Makes vectors at the source's site of items in the source's coordinates."""
    return source_vectors(segment)(items, positions)


@jax.jit
def fold_covectors(segment: Segment, items: Array, positions: Array) -> Float[Array, "m d_target"]:
    """Makes covectors at the site that the target reads of items in the target's coordinates."""
    return target_covectors(segment)(items, positions)
