"""A block, linearised: the maps of its parts, and attention, which alone moves anything between positions."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._precision import widened
from .._sites import Kind
from ..models import is_known
from ..parts import Attention, Rotary
from ._attention import AttentionMap
from ._forms import passed, read_by_scores
from ._local import LinearNorm, local_maps, norm_at, Values
from ._maps import dense, Items, LocalMap, Positions, same
from ._segment import Segment


class LinearBlock(NamedTuple):
    """One block at its clean point, in execution order: the maps of the norm at its entrance, and that norm itself, if its derivative is
    known; those to queries, keys and values as attention reads them; attention; and the maps from there on. What is not on the way may be
    missing.
    """

    norm: LinearNorm | None
    entrance: list[LocalMap]
    projections: list[LocalMap]
    heads: AttentionMap | None
    after: list[LocalMap]

    @property
    def before(self) -> list[LocalMap]:
        return [*self.entrance, *self.projections]

    @property
    def placing(self) -> list[LocalMap]:
        """Those of the projections that lead to keys which no one matrix makes of what attention reads."""
        keys = (Kind.K, Kind.K_NORMALIZED, Kind.ROT_K)
        direct = self.heads is None or self.heads.W_K is not None
        return [] if direct else [each for each in self.projections if each.target in keys]

    @property
    def maps(self) -> list[LocalMap]:
        return [*self.before, *self.after]


def linearise(segment: Segment) -> LinearBlock:
    """Linearises the one block of a segment between its ends, with what is frozen held."""
    block, values, frozen = segment.blocks[0], segment.inside(), segment.frozen_kinds
    on_the_way = {slot.name: slot for slot in passed(segment)}
    attention = on_the_way.pop("attn", None)
    attn = widened(block.attn) if attention is not None else None
    of = {name: local_maps(slot, slot.part(block), values, frozen) for name, slot in on_the_way.items()}
    d_model, middle = values[Kind.RESID_PRE].shape[1], Kind.RESID_MID if block.has_middle else Kind.RESID_POST
    passes_on = lambda source, target: LocalMap(source, target, same, d_model)
    entrance = of.get("ln1", []) if block.ln1 is not None else [passes_on(Kind.RESID_PRE, Kind.ATTN_IN)]
    after = [passes_on(Kind.RESID_PRE, middle)]
    if attn is not None and attention is not None and Kind.RESULT not in frozen:
        after.append(_output(attn, attention.writes))
    after += [*of.get("ln1_post", []), passes_on(Kind.ATTN_OUT, middle)]
    if block.mlp is not None:
        after += of.get("ln2", []) if block.ln2 is not None else [passes_on(block.mlp_reads, Kind.MLP_IN)]
        after += [*of.get("mlp", []), *of.get("ln2_post", []), passes_on(Kind.MLP_OUT, Kind.RESID_POST)]
        after += [passes_on(Kind.RESID_MID, Kind.RESID_POST)] if block.has_middle else []
    free = lambda maps: [each for each in maps if each.target not in frozen]
    return LinearBlock(
        norm=None
        if block.ln1 is None or "ln1" not in of or not is_known(block, "ln1")
        else norm_at(block.ln1, values, frozen),
        entrance=free(entrance),
        projections=[] if attn is None else free(_projections(attn, values, frozen)),
        heads=None if attn is None else _heads(attn, values, segment.masks[0], frozen),
        after=free(after),
    )


def _projections(attn: Attention, values: Values, frozen: Collection[Kind]) -> list[LocalMap]:
    """Makes the maps from what attention reads to values, and to queries and keys as the scores read them."""
    flat = lambda W: W.transpose(1, 0, 2).reshape(W.shape[1], -1)  # [head d_model d_head] -> [d_model (head d_head)]
    weights = {Kind.Q: attn.W_Q, Kind.K: attn.W_K, Kind.V: attn.W_V}
    maps = [LocalMap(Kind.ATTN_IN, kind, dense(flat(W)), W.shape[1]) for kind, W in weights.items()]
    for kind, norm in ((Kind.Q, attn.q_norm), (Kind.K, attn.k_norm)):
        maps += _placing(kind, read_by_scores(attn, kind), norm, attn.rotary, values, frozen)
    return maps


def _placing(
    kind: Kind, into: Kind, norm: Any, rotary: Rotary | None, values: Values, frozen: Collection[Kind]
) -> list[LocalMap]:
    """Makes the maps from queries or keys to what the scores read: through their norm, and rotated by their positions."""
    shape = values[kind].shape[1:]

    def turned(x: Items, positions: Positions) -> Items:
        return x if rotary is None else rotary(x.reshape(-1, *shape), positions).reshape(x.shape)

    width = math.prod(shape)
    if norm is None:
        return [] if rotary is None else [LocalMap(kind, into, turned, width)]
    linear, value = norm_at(norm, values, frozen), norm.sites[1]
    through = lambda x, positions: turned(linear.weigh(x, positions), positions)
    return [LocalMap(kind, value, linear.push, width), LocalMap(value, into, through, width)]


def _output(attn: Attention, writes: Kind) -> LocalMap:
    """Makes the map from the heads' averages of values, `[n (head d_head)]`, to what attention makes of them, `[n d_model]`."""
    W = attn.W_O.reshape(-1, attn.W_O.shape[-1])
    return LocalMap(Kind.Z, writes, dense(W), W.shape[0])


def _heads(attn: Attention, values: Values, mask: Array, frozen: Collection[Kind]) -> AttentionMap:
    # Laid out as products with many vectors read them, once and not in every part of a loop.
    out_first = lambda W: jax.lax.optimization_barrier(W.transpose(0, 2, 1))
    read = read_by_scores(attn, Kind.Q), read_by_scores(attn, Kind.K)
    return AttentionMap(
        q=values[read[0]],
        k=values[read[1]],
        v=values[Kind.V],
        z=values[Kind.Z],
        pattern=values[Kind.PATTERN],
        scale=attn.scale,
        cap_slopes=None if attn.cap is None else _cap_slopes(values[Kind.ATTN_SCORES], attn.cap),
        W_K=out_first(attn.W_K) if read[1] == Kind.K else None,
        W_V=out_first(attn.W_V),
        mask=mask,
        paths=_paths(frozen),
        read=read,
    )


def _cap_slopes(scores: Float[Array, "head q_seq k_seq"], cap: float) -> Float[Array, "head q_seq k_seq"]:
    """The derivative of capped scores with respect to the same before the cap; 0 where the mask allows no attention."""
    return jnp.where(jnp.isfinite(scores), 1 - (scores / cap) ** 2, 0)


def _paths(frozen: Collection[Kind]) -> frozenset[Kind]:
    """Says which of attention's three inputs carry a tangent."""
    if Kind.Z in frozen:
        return frozenset()
    moving = {Kind.V} if {Kind.PATTERN, Kind.ATTN_SCORES} & set(frozen) else {Kind.Q, Kind.K, Kind.V}
    stages = {Kind.Q: {Kind.Q, Kind.Q_NORMALIZED, Kind.ROT_Q}, Kind.K: {Kind.K, Kind.K_NORMALIZED, Kind.ROT_K}}
    return frozenset(kind for kind in moving if not stages.get(kind, {kind}) & set(frozen))
