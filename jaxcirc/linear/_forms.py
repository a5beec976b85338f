"""Which engine computes what: closed forms where the span is one that they cover, autodiff for every other."""

from collections.abc import Iterable

from .._sites import Kind, Part, Site
from .._tap import site_read
from .._typing import Resid
from ..parts import Attention, Block, LayerNorm
from ._local import has_local_maps
from ._segment import Span
from ._slots import Slot, slots, slots_between


LOCAL = frozenset(
    {
        Kind.RESID_PRE,
        Kind.LN1_NORMALIZED,
        Kind.Q,
        Kind.K,
        Kind.V,
        Kind.Z,
        Kind.ATTN_OUT,
        Kind.RESID_MID,
        Kind.LN2_NORMALIZED,
        Kind.MLP_PRE,
        Kind.MLP_POST,
        Kind.MLP_OUT,
        Kind.RESID_POST,
    }
)
HELD = LOCAL | {Kind.LN1_SCALE, Kind.LN2_SCALE, Kind.ATTN_SCORES, Kind.PATTERN, Kind.RESULT}


def is_closed(span: Span) -> bool:
    """Whether closed forms give the bilinear forms of a span: one block, ends and held sites among those they know."""
    return (
        len(span.blocks) == 1
        and span.outside is None
        and is_folded(span)
        and all(site.kind in LOCAL for site in (span.source, read_site(span)))
        and all(site.kind in HELD for site in span.frozen)
        and _has_maps(span.blocks[0], passed(span), span.resid)
    )


def passed(span: Span) -> tuple[Slot, ...]:
    """The parts that may lie between the ends of a one-block segment."""
    return slots_between(span.blocks[0], span.source.kind, read_site(span).kind, span.held)


def _has_maps(block: Block, some: Iterable[Slot], resid: Resid) -> bool:
    """Whether there are maps of these parts of a block: of attention in closed form, of others at least by autodiff of their own code."""
    known = lambda slot, part: type(part) is Attention if slot.name == "attn" else has_local_maps(part, resid)
    return type(block) is Block and all(known(slot, slot.part(block)) for slot in some)


def is_folded(span: Span) -> bool:
    """Whether dictionaries are at the span's ends only, so that they can be folded into vectors and covectors at its sites; with what
    is held of them: the error, where a decoder's input is the source, and a decoder's input, where the error is the target.
    """
    source, target = span.source, span.target
    at_ends = {source.value.error, target.value.input}
    if any(site.part != Part.VALUE and site not in at_ends for site in span.frozen):
        return False
    if source.part == Part.INPUT and source.value == target.value and target.part != Part.VALUE:
        return False
    return target.part != Part.ERROR or site_read(target.value, span.saes[target.value]) == target.value


def read_site(span: Span) -> Site:
    """The site whose value the target is a function of: for what a dictionary makes of its input itself, the site that it reads."""
    target = span.target
    own = target.part in (Part.ACTS, Part.INPUT)
    return site_read(target.value, span.saes[target.value]) if own else target.value


def is_local(span: Span) -> bool:
    """Whether nothing moves between positions on the way: no path through attention."""
    return is_closed(span) and not attends(span)


def attends(span: Span) -> bool:
    """Whether a one-block span goes through attention."""
    target, held = read_site(span).kind, span.held
    stopped = Kind.Z in held or (target > Kind.Z and {Kind.RESULT, Kind.ATTN_OUT} & held)
    beside = span.blocks[0].parallel and Kind.ATTN_OUT < target < Kind.RESID_POST
    return span.source.kind < Kind.ATTN_SCORES and target >= Kind.Z and not stopped and not beside


def is_chain(span: Span) -> bool:
    """Whether the full Jacobian of a span can be had block by block in closed form: from residual stream to residual stream."""
    residual = (Kind.RESID_PRE, Kind.RESID_POST)
    return (
        span.outside is None
        and not span.saes
        and span.source.kind == Kind.RESID_PRE
        and span.target.kind in residual
        and all(site.kind in HELD for site in span.frozen)
        and all(block.mlp is not None and _has_maps(block, slots(block), span.resid) for block in span.blocks)
        and _is_plain_norm(span.blocks[-1])
    )


def is_dense(span: Span) -> bool:
    """Whether the whole matrix of a one-block segment is made at once, which takes the norm at its entrance apart: a layer norm or none."""
    return _is_plain_norm(span.blocks[0]) or span.source.kind != Kind.RESID_PRE


def _is_plain_norm(block: Block) -> bool:
    return block.ln1 is None or type(block.ln1) is LayerNorm
