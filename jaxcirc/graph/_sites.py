"""Which sites feed which: the graph of the model, by site.

The Jacobian from one site to another is empty when every path between them meets a site that is held, and that is known from the graph
alone, before anything is computed.
"""

from collections.abc import Collection, Iterator, Mapping

from .._sites import Kind, Part, Site
from .._tap import site_read
from ..models import Transformer
from ..saes import AbstractDictionary


Dictionaries = Mapping[Site, AbstractDictionary]


def reaches(
    model: Transformer, source: Site, target: Site, held: Collection[Site] = (), saes: Dictionaries | None = None
) -> bool:
    """Whether a path leads from `source` to `target` that meets no site of `held` on its way."""
    return target in next_of(model, source, {*held, target}, saes)


def next_of(model: Transformer, source: Site, sites: Collection[Site], saes: Dictionaries | None = None) -> set[Site]:
    """Those of `sites` to which a path leads from `source` that meets no other of them on its way."""
    frontier, seen = [source], {source}
    while frontier:
        new = set(children(model, frontier.pop(), saes or {})) - seen
        seen |= new
        frontier += new.difference(sites)
    return seen.intersection(sites) - {source}


def children(model: Transformer, site: Site, saes: Dictionaries) -> Iterator[Site]:
    """The sites that read the value at `site` first. One with a dictionary is read through its latents and its error, which make up the
    value, and by its decoder where that reads its input.
    """
    if site.part != Part.VALUE:
        yield site.value
        if site.part == Part.INPUT:
            yield site.error
        return
    for child in _readers(model, site):
        if child not in saes:
            yield child
        else:
            yield child.error
            if site_read(child, saes[child]) == child:
                yield from _read_by(child, saes[child])
    for place, sae in saes.items():
        if place != site and site_read(place, sae) == site:  # a transcoder
            yield from _read_by(place, sae)
            yield place.error


def _read_by(place: Site, sae: AbstractDictionary) -> Iterator[Site]:
    """What the dictionary at `place` makes of its input itself."""
    yield place.acts
    if sae.decoder_reads_input:
        yield place.input


def _readers(model: Transformer, site: Site) -> Iterator[Site]:
    layer, kind = site.layer, site.kind
    if layer is None:
        yield from _outside(model, kind)
        return
    block = model.blocks[layer]
    after_attention = Kind.RESID_MID if block.has_middle else Kind.RESID_POST
    first_of_attention = (Kind.Q, Kind.K, Kind.V) if block.ln1 is None else (Kind.LN1_SCALE, Kind.LN1_NORMALIZED)
    first_of_mlp = (Kind.MLP_PRE,) if block.ln2 is None else (Kind.LN2_SCALE, Kind.LN2_NORMALIZED)
    readers: dict[Kind, tuple[Kind, ...]] = {
        Kind.RESID_PRE: (*first_of_attention, *(first_of_mlp if block.parallel else ()), after_attention),
        Kind.LN1_SCALE: (Kind.LN1_NORMALIZED,),
        Kind.LN1_NORMALIZED: (Kind.Q, Kind.K, Kind.V),
        Kind.Q: (Kind.ATTN_SCORES,),
        Kind.K: (Kind.ATTN_SCORES,),
        Kind.ATTN_SCORES: (Kind.PATTERN,),
        Kind.PATTERN: (Kind.Z,),
        Kind.V: (Kind.Z,),
        Kind.Z: (Kind.RESULT,),
        Kind.RESULT: (Kind.ATTN_OUT,),
        Kind.ATTN_OUT: (after_attention,),
        Kind.RESID_MID: (*first_of_mlp, Kind.RESID_POST),
        Kind.LN2_SCALE: (Kind.LN2_NORMALIZED,),
        Kind.LN2_NORMALIZED: (Kind.MLP_PRE,),
        Kind.MLP_PRE: (Kind.MLP_POST,),
        Kind.MLP_POST: (Kind.MLP_OUT,),
        Kind.MLP_OUT: (Kind.RESID_POST,),
        Kind.RESID_POST: (),
    }
    yield from (Site(layer, reader) for reader in readers[kind])
    if kind == Kind.RESID_POST:
        if layer + 1 < model.n_layers:
            yield Site(layer + 1, Kind.RESID_PRE)
        else:
            yield from (Site(None, kind) for kind in _first_of_unembedding(model))


def _outside(model: Transformer, kind: Kind) -> Iterator[Site]:
    if kind in (Kind.EMBED, Kind.POS_EMBED):
        yield Site(0, Kind.RESID_PRE) if model.blocks else Site(None, _first_of_unembedding(model)[-1])
    elif kind == Kind.FINAL_SCALE:
        yield Site(None, Kind.FINAL_NORMALIZED)
    elif kind == Kind.FINAL_NORMALIZED:
        yield Site(None, Kind.LOGITS)


def _first_of_unembedding(model: Transformer) -> tuple[Kind, ...]:
    return (Kind.LOGITS,) if model.ln_final is None else (Kind.FINAL_SCALE, Kind.FINAL_NORMALIZED)
