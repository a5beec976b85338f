"""A segment: the part of a model between two sites, as a pure function of what is added at the first.

Only the blocks between the sites are in it, as arguments, and its sites are relative to the first of them. So the Jacobians of one kind,
in whatever layer, run one compiled program. This is the autodiff engine: it takes any source, any target and any frozen set.
"""

import functools as ft
from collections.abc import Container, Iterable, Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._edits import AbstractEdit, Add, Detach
from .._run import NOTHING
from .._sites import Kind, Part, Site
from .._tap import site_read, Tap
from .._typing import Keys, Mask, Resid, Tokens
from ..models import Pieces, through_blocks, Transformer
from ..parts import Block
from ..saes import AbstractDictionary, anonymous


class Segment(eqx.Module):
    """Blocks, what flows into the first of them, and the two sites, which count layers from that block.

    **Attributes:**

    - `blocks`, `masks`: from the source's block to the target's; `resid` `[seq d_model]` enters the first.
    - `outside`: the model without its blocks, where the segment includes an embedding or the unembedding; then `tokens` and `keys`, too.
    - `saes`: dictionaries of the sites whose latents or errors are an end or are held.
    - `frozen`: the sites held without tangent.
    - `displacement`: how far the source's value is moved from what enters makes it, at the point of linearisation; `None` for not at all.
    """

    blocks: tuple[Block, ...]
    masks: tuple[Mask, ...]
    resid: Resid
    outside: Transformer | None
    tokens: Tokens | None
    keys: Keys | None
    saes: dict[Site, AbstractDictionary]
    source: Site = eqx.field(static=True)
    target: Site = eqx.field(static=True)
    frozen: tuple[Site, ...] = eqx.field(static=True)
    displacement: Float[Array, "..."] | None = None

    @property
    def frozen_kinds(self) -> frozenset[Kind]:
        """The kinds of the values that are held; parts of dictionaries that are, are not among them."""
        return frozenset(site.kind for site in self.frozen if site.part == Part.VALUE)

    def __call__(self, step: Float[Array, "..."]) -> Float[Array, "..."]:
        """The value at the target when `step` is added at the source."""
        held = {site: Detach() for site in self.frozen}
        return self.record({self.target}, step if self.displacement is None else step + self.displacement, held)[
            self.target
        ]

    def record(
        self,
        sites: Container[Site],
        step: Float[Array, "..."] | None = None,
        held: Mapping[Site, AbstractEdit] = NOTHING,
    ) -> dict[Site, Array]:
        """The values at `sites`, at the point of linearisation or `step` from what enters makes the source."""
        step = self.displacement if step is None else step
        edits = {**held} if step is None else {**held, self.source: Add(step)}
        tap = Tap(self.saes, edits, sites)
        resid = self.resid
        if self.tokens is not None:
            assert self.outside is not None
            resid = self.outside.embed(self.tokens, tap, self.keys)
        resid = through_blocks(self.blocks, self.masks, resid, Pieces(tap), loops=True)
        if self.outside is not None and self.target.layer is None:
            self.outside.unembed(resid, tap)
        return tap.cache

    def inside(self) -> dict[Kind, Array]:
        """The values inside the first block, `[seq …]` by kind of site; what the block does not have is not there, nor are gates that are
        no end of the segment and not held.
        """
        read = [site_read(site, sae) for site, sae in self.saes.items()]
        asked = {site.kind for site in (self.source, self.target, *self.frozen, *read)}
        # Each head's result is large, and never needed.
        left_out = {Kind.RESULT} | ({Kind.MLP_GATE} - asked)
        kinds = [kind for kind in Kind if kind.in_block and kind not in left_out]
        return {site.kind: value for site, value in self.record({Site(0, kind) for kind in kinds}).items()}

    def shapes(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Shape and dtype of the values at source and target."""
        return _at_ends.eval_shape(self)

    def zero(self) -> Float[Array, "..."]:
        """No step: the point at which the segment is linearised."""
        source, _ = self.shapes()
        return jnp.zeros(source.shape, source.dtype)


@jax.jit
def _at_ends(segment: Segment) -> tuple[Array, Array]:
    cache = segment.record({segment.source, segment.target})
    return cache[segment.source], cache[segment.target]


@ft.partial(jax.jit, static_argnames="chunk")
def jvp(
    segment: Segment, tangents: Float[Array, "tangent ..."], *, chunk: int | None = None
) -> Float[Array, "tangent ..."]:
    """`J v` for each tangent at the source: one linearisation, `chunk` tangents at a time."""
    _, linear = jax.linearize(segment, segment.zero())
    return batched(linear, tangents, chunk)


@ft.partial(jax.jit, static_argnames="chunk")
def vjp(
    segment: Segment, cotangents: Float[Array, "tangent ..."], *, chunk: int | None = None
) -> Float[Array, "tangent ..."]:
    """`J^T w` for each cotangent at the target."""
    _, transposed = jax.vjp(segment, segment.zero())
    return batched(lambda cotangent: transposed(cotangent)[0], cotangents, chunk)


def batched(function, arrays, chunk: int | None):
    """`vmap`, or a loop over `chunk`s of it."""
    if chunk is None or chunk >= jax.tree.leaves(arrays)[0].shape[0]:
        return jax.vmap(function)(arrays)
    return jax.lax.map(function, arrays, batch_size=chunk)


def make_segment(
    model: Transformer,
    tokens: Tokens,
    keys: Keys | None,
    resids: Sequence[Resid],
    source: Site,
    target: Site,
    frozen: Iterable[Site],
    saes: dict[Site, AbstractDictionary],
) -> tuple[Segment, int]:
    """The segment from `source` to `target`, absolute sites, given what enters each block in the clean run; and its first layer."""
    needed = {site.value for site in (source, target, *frozen) if site.part != Part.VALUE and site.value in saes}
    reads = {site: site_read(site, saes[site]) for site in needed}
    first = min(site.layer or 0 for site in (source, *reads.values()))
    last = model.n_layers - 1 if target.layer is None else target.layer
    begins, ends = source.layer is None, target.layer is None
    blocks = slice(first, last + 1)
    relative = {site.offset_layers(-first): anonymous(saes[site], reads[site].offset_layers(-first)) for site in needed}
    segment = Segment(
        blocks=model.blocks[blocks],
        masks=model.masks(tokens.shape[0], keys)[blocks],
        resid=resids[first],
        outside=model.without_blocks if begins or ends else None,
        tokens=tokens if begins else None,
        keys=keys if begins else None,
        saes=relative,
        source=source.offset_layers(-first),
        target=target.offset_layers(-first),
        frozen=tuple(sorted(site.offset_layers(-first) for site in frozen if source < site < target)),
    )
    return segment, first


def between_blocks(
    blocks: tuple[Block, ...],
    masks: tuple[Mask, ...],
    resid: Resid,
    source: Site,
    target: Site,
    frozen: Iterable[Site],
    displacement: Float[Array, "..."] | None = None,
) -> Segment:
    """A segment of bare blocks: no dictionaries, nothing outside them, and sites that count layers from the first."""
    held = tuple(sorted(site for site in frozen if source < site < target))
    return Segment(blocks, masks, resid, None, None, None, {}, source, target, held, displacement)
