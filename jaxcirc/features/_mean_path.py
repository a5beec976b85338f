"""What is between two dictionaries whose edges are averaged over a corpus: an MLP with its norm, or the residual stream alone."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import NamedTuple

import equinox as eqx

from .._run import check_dictionaries, site_shapes
from .._sites import did_you_mean, Kind, layer_of, Site
from .._tap import site_read
from ..jacobian._around import ends_around, sublayer_between
from ..jacobian._sublayer import Sublayer
from ..models import check_known, Transformer
from ..parts import LayerNorm, Norm
from ..saes import AbstractDictionary, anonymous


THROUGH = ("mlp", "stream")
STREAM = (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST)


class Path(eqx.Module):
    """`sub` leads from the source's site, or the stream into which that is written, to what the target's encoder reads. The dictionaries
    are without their names.
    """

    sub: Sublayer
    source: AbstractDictionary
    target: AbstractDictionary


class Between(NamedTuple):
    """A path with its sites: what `enters` it, what the target's encoder `reads`, and what the source's `encodes`."""

    path: Path
    enters: Site
    reads: Site
    encodes: Site


def find_path(
    verb: str,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    source: Site,
    target: Site,
    through: str,
    frozen: Collection[Site | str],
) -> Between:
    """**Raises:** `ValueError` if there is no such path, or no closed form of it, or a dictionary does not fit."""
    for site in (source, target):
        if site not in saes:
            there = ", ".join(f"`{known}`" for known in saes) or "none"
            raise ValueError(f"{verb}: there is no dictionary at `{site}`. The dictionaries given are at: {there}.")
    of_source, of_target = saes[source], saes[target]
    check_dictionaries(model, {source: of_source, target: of_target})
    encodes, reads = site_read(source, of_source), site_read(target, of_target)
    shapes = site_shapes(model, 1)
    for site in (source, target, encodes, reads):
        if site not in shapes:
            raise ValueError(f"{verb}: no site `{site}` in {model.name}. {did_you_mean(str(site), map(str, shapes))}")
    for site, sae, read in ((source, of_source, encodes), (target, of_target, reads)):
        sae.check_width(site, shapes[read].size, shapes[site].size)
    if getattr(of_target, "normalisation", None) is not None:
        raise ValueError(
            f"{verb}: the dictionary at `{target}` normalises what it reads, so its latents read another direction at every position, and "
            "there is no closed form. Prompt by prompt jc.feature_jacobian takes it."
        )
    check_known(verb, model)
    find = _around_mlp if through == "mlp" else _in_stream
    sub, enters = find(verb, model, source, reads, frozen)
    if not sub.is_closed:
        held = ", ".join(sorted(f"`{Site(enters.layer, kind)}`" for kind in sub.frozen)) or "nothing"
        raise ValueError(
            f"{verb}: there is no closed form of what is between `{source}` and `{reads}` ({_classes(sub)}, with {held} held). "
            "Any part is taken by jc.jacobian.mean, and prompt by prompt by jc.feature_jacobian."
        )
    return Between(Path(sub, anonymous(of_source), anonymous(of_target)), enters, reads, encodes)


def _classes(sub: Sublayer) -> str:
    return ", ".join(type(part).__name__ for part in sub.parts)


def _around_mlp(verb: str, model: Transformer, source: Site, reads: Site, frozen) -> tuple[Sublayer, Site]:
    end = reads
    if reads.kind == Kind.RESID_PRE and layer_of(reads) > 0:
        end = Site(layer_of(reads) - 1, Kind.RESID_POST)
    try:
        ends_around(verb, model, None, source, end)
    except ValueError as error:
        raise ValueError(f"{error} For the path through the residual stream alone give through='stream'.") from None
    return sublayer_between(verb, model, source, end, frozen), source


def _in_stream(verb: str, model: Transformer, source: Site, reads: Site, frozen) -> tuple[Sublayer, Site]:
    """The path that meets no attention and no MLP: only the norm before what the target reads, if there is one."""
    held = frozenset(map(Site.parse, frozen))
    entry, (stream, norm) = _entry(model, source), _read(model, reads)
    if entry is None or stream is None:
        raise ValueError(
            f"{verb}: `{source}` and `{reads}` are not joined by the residual stream: from an embedding, attention's or an MLP's output or "
            "the stream itself, to the stream or what a norm makes of it for attention or an MLP."
        )
    if not entry <= stream:
        raise ValueError(f"{verb}: `{source}` is not upstream of `{reads}`. Are they swapped?")
    scale = frozenset() if norm is None else frozenset({norm.sites[0]})
    frozen_kinds = frozenset(site.kind for site in held if site.layer == reads.layer) & scale
    return Sublayer(norm, None, None, False, frozen_kinds), stream


def _entry(model: Transformer, source: Site) -> Site | None:
    """Where in the stream it is that something is written to."""
    if source.kind in (Kind.EMBED, Kind.POS_EMBED):
        return Site(0, Kind.RESID_PRE)
    if source.layer is None or source.kind in STREAM:
        return source if source.kind in STREAM else None
    middle = source.kind == Kind.ATTN_OUT and model.blocks[source.layer].has_middle
    written = source.kind in (Kind.ATTN_OUT, Kind.MLP_OUT)
    return Site(source.layer, Kind.RESID_MID if middle else Kind.RESID_POST) if written else None


def _read(model: Transformer, reads: Site) -> tuple[Site | None, Norm | None]:
    """The stream that something is made of, and the norm that makes it."""
    if reads.layer is None:
        return None, None
    if reads.kind in STREAM:
        return reads, None
    block = model.blocks[reads.layer]
    before_attention, before_mlp = Site(reads.layer, Kind.RESID_PRE), Site(reads.layer, block.mlp_reads)
    bare = lambda norm: dataclasses.replace(
        norm, weight=None, **({"bias": None} if isinstance(norm, LayerNorm) else {})
    )
    found = {
        Kind.ATTN_IN: (before_attention, lambda: block.ln1),
        Kind.LN1_NORMALIZED: (before_attention, lambda: bare(block.ln1)),
        Kind.MLP_IN: (before_mlp, lambda: block.ln2),
        Kind.LN2_NORMALIZED: (before_mlp, lambda: bare(block.ln2)),
    }.get(reads.kind)
    return (None, None) if found is None else (found[0], found[1]())
