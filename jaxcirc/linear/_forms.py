"""Which engine computes what: closed forms where the span is one that they cover, autodiff for every other."""

from .._sites import Kind, Part, Site
from .._tap import site_read
from ._segment import Span


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
    )


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
        and all(block.mlp is not None for block in span.blocks)
    )


def is_dense(span: Span) -> bool:
    """Whether the whole matrix of a one-block span in closed form is made at once: where no other norm than `LayerNorm` is on its way."""
    return True
