"""Which engine computes what: closed forms where the segment is one that they cover, autodiff for every other."""

from collections.abc import Iterable

from .._sites import Kind, Part, Site
from .._tap import site_read
from .._typing import Resid
from ..models import is_known
from ..parts import Attention, Block
from ._local import has_closed_form, has_local_maps
from ._segment import Segment
from ._slots import Slot, slots, slots_between


NORM_SCALES = frozenset(
    {Kind.LN1_SCALE, Kind.Q_SCALE, Kind.K_SCALE, Kind.LN1_POST_SCALE, Kind.LN2_SCALE, Kind.LN2_POST_SCALE}
)
HELD = frozenset(kind for kind in Kind if kind.in_block)
LOCAL = HELD - NORM_SCALES - {Kind.ATTN_SCORES, Kind.PATTERN, Kind.RESULT}


def is_closed(segment: Segment) -> bool:
    """Whether closed forms give the bilinear forms of a segment: one block, ends and held sites among those they know."""
    return (
        len(segment.blocks) == 1
        and segment.outside is None
        and is_folded(segment)
        and all(site.kind in LOCAL for site in (segment.source, read_site(segment)))
        and all(site.kind in HELD for site in segment.frozen)
        and _has_maps(segment.blocks[0], passed(segment), segment.resid)
    )


def passed(segment: Segment) -> tuple[Slot, ...]:
    """The parts that may lie between the ends of a one-block segment."""
    return slots_between(segment.blocks[0], segment.source.kind, read_site(segment).kind, segment.frozen_kinds)


def _has_maps(block: Block, some: Iterable[Slot], resid: Resid) -> bool:
    """Whether there are maps of these parts of a block: of attention in closed form, of others at least by autodiff of their own code."""
    mapped = lambda slot: _is_mapped(block) if slot.name == "attn" else has_local_maps(slot, slot.part(block), resid)
    return is_known(block) and all(map(mapped, some))


def _is_mapped(block: Block) -> bool:
    """Whether a block's attention has its closed form, with whatever norms of queries and keys."""
    norms = (block.attn.q_norm, block.attn.k_norm) if is_known(block, "attn") else (block.attn,)
    return all(norm is None or has_closed_form(norm) for norm in norms)


def read_by_scores(attn: Attention, kind: Kind) -> Kind:
    """The kind of site of queries, keys or values behind what places them: their norm, and rotation by their positions."""
    behind = {Kind.Q: Kind.ROT_Q} if attn.places_queries else {}
    behind |= {Kind.K: Kind.ROT_K} if attn.places_keys else {}
    return behind.get(kind, kind)


def can_spread(segment: Segment) -> bool:
    """Whether rows can be spread over the keys of a one-block segment at the price of a few covectors a head: one matrix makes the keys."""
    stopped = segment.frozen_kinds & {Kind.K, Kind.K_NORMALIZED, Kind.ROT_K, Kind.ATTN_SCORES, Kind.PATTERN}
    return bool(stopped) or read_by_scores(segment.blocks[0].attn, Kind.K) == Kind.K


def is_folded(segment: Segment) -> bool:
    """Whether dictionaries are at the segment's ends only, so that they can be folded into vectors and covectors at its sites; with what
    is held of them: the error, where a decoder's input is the source, and a decoder's input, where the error is the target.
    """
    source, target = segment.source, segment.target
    at_ends = {source.value.error, target.value.input}
    if any(site.part != Part.VALUE and site not in at_ends for site in segment.frozen):
        return False
    if source.part == Part.INPUT and source.value == target.value and target.part != Part.VALUE:
        return False
    return target.part != Part.ERROR or site_read(target.value, segment.saes[target.value]) == target.value


def read_site(segment: Segment) -> Site:
    """The site whose value the target is a function of: for what a dictionary makes of its input itself, the site that it reads."""
    target = segment.target
    own = target.part in (Part.ACTS, Part.INPUT)
    return site_read(target.value, segment.saes[target.value]) if own else target.value


def is_local(segment: Segment) -> bool:
    """Whether nothing moves between positions on the way: no path through attention."""
    return is_closed(segment) and not attends(segment)


def attends(segment: Segment) -> bool:
    """Whether a one-block segment goes through attention."""
    target, held = read_site(segment).kind, segment.frozen_kinds
    outputs = {kind for kind in held if Kind.Z < kind <= Kind.ATTN_OUT} - NORM_SCALES
    stopped = Kind.Z in held or (target > Kind.Z and outputs)
    beside = segment.blocks[0].parallel and Kind.ATTN_OUT < target < Kind.RESID_POST
    return segment.source.kind < Kind.ATTN_SCORES and target >= Kind.Z and not stopped and not beside


def is_chain(segment: Segment) -> bool:
    """Whether the full Jacobian of a segment can be had block by block in closed form: from residual stream to residual stream."""
    residual = (Kind.RESID_PRE, Kind.RESID_POST)
    return (
        segment.outside is None
        and not segment.saes
        and segment.source.kind == Kind.RESID_PRE
        and segment.target.kind in residual
        and all(site.kind in HELD for site in segment.frozen)
        and all(block.mlp is not None and _has_maps(block, slots(block), segment.resid) for block in segment.blocks)
        and is_known(segment.blocks[-1], "ln1")
    )


def is_dense(segment: Segment) -> bool:
    """Whether the whole matrix of a one-block segment is made at once, which takes the norm at its entrance apart: one that is known, or
    none.
    """
    return is_known(segment.blocks[0], "ln1") or segment.source.kind > Kind.LN1_NORMALIZED
