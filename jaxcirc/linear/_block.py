"""A block, linearised: the maps of its parts, and attention, which alone moves anything between positions."""

from collections.abc import Collection
from typing import NamedTuple

import jax
from jaxtyping import Array

from .._precision import widened
from .._sites import Kind
from ..parts import Attention, LayerNorm
from ._attention import AttentionMap
from ._forms import passed
from ._local import local_maps, Norm, norm_at, Values
from ._maps import dense, LocalMap, same
from ._segment import Segment


class LinearBlock(NamedTuple):
    """One block at its clean point, in execution order: the maps of the norm at its entrance, and that norm itself, if it is a layer norm;
    those to queries, keys and values; attention; and the maps from there on. What is not on the way may be missing.
    """

    norm: Norm | None
    entrance: list[LocalMap]
    projections: list[LocalMap]
    heads: AttentionMap | None
    after: list[LocalMap]

    @property
    def before(self) -> list[LocalMap]:
        return [*self.entrance, *self.projections]

    @property
    def maps(self) -> list[LocalMap]:
        return [*self.before, *self.after]


def linearise(segment: Segment) -> LinearBlock:
    """Linearises the one block of a segment between its ends, with what is frozen held."""
    block, values, frozen = segment.blocks[0], segment.inside(), segment.frozen_kinds
    stopped = {*frozen, *([Kind.ATTN_OUT] if Kind.RESULT in frozen else [])}
    on_the_way = {slot.name: slot for slot in passed(segment)}
    attn = widened(block.attn) if on_the_way.pop("attn", None) else None
    of = {name: local_maps(slot, slot.part(block), values, frozen) for name, slot in on_the_way.items()}
    d_model, middle = values[Kind.RESID_PRE].shape[1], Kind.RESID_MID if block.has_middle else Kind.RESID_POST
    passes_on = lambda source, target: LocalMap(source, target, same, d_model)
    entrance = of.get("ln1", []) if block.ln1 is not None else [passes_on(Kind.RESID_PRE, Kind.LN1_NORMALIZED)]
    after = [passes_on(Kind.RESID_PRE, middle), *_output(attn), passes_on(Kind.ATTN_OUT, middle)]
    if block.mlp is not None:
        after += of.get("ln2", []) if block.ln2 is not None else [passes_on(block.mlp_reads, Kind.LN2_NORMALIZED)]
        after += [*of.get("mlp", []), passes_on(Kind.MLP_OUT, Kind.RESID_POST)]
        after += [passes_on(Kind.RESID_MID, Kind.RESID_POST)] if block.has_middle else []
    free = lambda maps: [each for each in maps if each.target not in stopped]
    return LinearBlock(
        norm=norm_at(block.ln1, Kind.RESID_PRE, values, frozen)
        if "ln1" in of and type(block.ln1) is LayerNorm
        else None,
        entrance=free(entrance),
        projections=free(_projections(attn)),
        heads=None if attn is None else _heads(attn, values, segment.masks[0], frozen),
        after=free(after),
    )


def _projections(attn: Attention | None) -> list[LocalMap]:
    """Makes the maps from what attention reads to queries, keys and values."""
    if attn is None:
        return []
    flat = lambda W: W.transpose(1, 0, 2).reshape(W.shape[1], -1)  # [head d_model d_head] -> [d_model (head d_head)]
    weights = {Kind.Q: attn.W_Q, Kind.K: attn.W_K, Kind.V: attn.W_V}
    return [LocalMap(Kind.LN1_NORMALIZED, kind, dense(flat(W)), W.shape[1]) for kind, W in weights.items()]


def _output(attn: Attention | None) -> list[LocalMap]:
    """Makes the map from the heads' averages of values, `[n (head d_head)]`, to what attention writes, `[n d_model]`."""
    if attn is None:
        return []
    W = attn.W_O.reshape(-1, attn.W_O.shape[-1])
    return [LocalMap(Kind.Z, Kind.ATTN_OUT, dense(W), W.shape[0])]


def _heads(attn: Attention, values: Values, mask: Array, frozen: Collection[Kind]) -> AttentionMap:
    # Laid out as products with many vectors read them, once and not in every part of a loop.
    out_first = lambda W: jax.lax.optimization_barrier(W.transpose(0, 2, 1))
    return AttentionMap(
        q=values[Kind.Q],
        k=values[Kind.K],
        v=values[Kind.V],
        z=values[Kind.Z],
        pattern=values[Kind.PATTERN],
        scale=attn.scale,
        W_Q=out_first(attn.W_Q),
        W_K=out_first(attn.W_K),
        W_V=out_first(attn.W_V),
        mask=mask,
        paths=_paths(frozen),
    )


def _paths(frozen: Collection[Kind]) -> frozenset[Kind]:
    """Says which of attention's three inputs carry a tangent."""
    if Kind.Z in frozen:
        return frozenset()
    moving = {Kind.V} if {Kind.PATTERN, Kind.ATTN_SCORES} & set(frozen) else {Kind.Q, Kind.K, Kind.V}
    return frozenset(moving - set(frozen))
