"""Who is upstream of whom: at which cut of the residual stream a node's writing arrives, and at which one reads.

Within a cut what components wrote comes first, then what a dictionary makes of the stream, then the sublayers that read it.
"""

from .._sites import Kind, layer_of, Site
from ..graph import entry
from ..models import Transformer


Place = tuple[int, int]  # of the cuts in their order the number, and the stage there

WRITTEN, ENCODED, DECODED, READ = range(4)
RESIDUAL = (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST)


def written_at(model: Transformer, site: Site) -> Place:
    """Where what a site holds has arrived in the stream."""
    if site.layer is None:
        return (0, WRITTEN)
    if site.kind in RESIDUAL:
        return _cut(model, entry(model, site)), DECODED
    out = Kind.MLP_OUT if in_mlp(site.kind) else Kind.ATTN_OUT
    return _cut(model, entry(model, Site(site.layer, out))), WRITTEN


def read_at(model: Transformer, site: Site) -> Place:
    """Where what a site holds has been read from the stream."""
    if site.kind in RESIDUAL:
        return _cut(model, entry(model, site)), ENCODED
    return _cut(model, Site(layer_of(site), cut_read(model, site))), READ


def end(model: Transformer) -> Place:
    """Where the final norm reads."""
    return 2 * model.n_layers, READ


def cut_read(model: Transformer, site: Site) -> Kind:
    """The cut that the sublayer reads in which a site is."""
    block = model.blocks[layer_of(site)]
    return block.mlp_reads if in_mlp(site.kind) and block.mlp is not None else Kind.RESID_PRE


def in_mlp(kind: Kind) -> bool:
    """Whether a kind of site is one of an MLP, and of the norms around it."""
    return Kind.LN2_SCALE <= kind <= Kind.MLP_OUT


def _cut(model: Transformer, cut: Site) -> int:
    return 2 * layer_of(cut) + (cut.kind == Kind.RESID_MID)
