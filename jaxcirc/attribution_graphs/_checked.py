"""What may stand for a model's sublayers in a graph."""

import functools as ft
from collections.abc import Mapping

from .._run import site_shapes
from .._sites import Kind, Part, Site
from ..models import check_known, Transformer
from ..saes import AbstractDictionary, CrossLayerTranscoder
from ._given import Dictionaries, given_dictionaries, Transcoders
from ._held_maps import BEFORE_ATTENTION, BEFORE_MLP


_READS = (*BEFORE_ATTENTION, *BEFORE_MLP)


def checked_dictionaries(verb: str, model: Transformer, given: Transcoders) -> Dictionaries:
    """Dictionaries by site, or a cross-layer transcoder; none at all where neurons stand for MLPs.

    **Raises:** `ValueError` for those of another model or site, for layers that are missing, and for what a graph has no place for.
    """
    check_known(verb, model)
    what, across = f"{verb}: transcoders", isinstance(given, CrossLayerTranscoder)
    check_place = ft.partial(_check_layer if across else _check_place, what, model)
    found = given_dictionaries(verb, model, given, check_place)
    if isinstance(found, CrossLayerTranscoder):
        if found.n_layers != model.n_layers:
            raise ValueError(
                f"{what}: this cross-layer transcoder is of {found.n_layers} layers, and {model.name} has {model.n_layers}. Was it trained "
                "for another model?"
            )
    else:
        _check_whole(what, model, found)
        if all(site.kind != Kind.MLP_OUT for site in found):
            check_known(f"{verb} with neurons", model, "mlp", "ln2_post")
    return found


def _check_place(what: str, model: Transformer, site: Site, reads: Site) -> None:
    if site.kind not in (Kind.MLP_OUT, Kind.ATTN_OUT) or site.part != Part.VALUE:
        raise ValueError(
            f"{what}: a dictionary of a graph stands for what a sublayer adds, `hook_mlp_out` or `hook_attn_out` of a layer; got one for "
            f"`{site}`. Residual streams are no sublayer: jc.discover takes their dictionaries."
        )
    if reads != site and (site.kind == Kind.ATTN_OUT or reads.kind not in _READS or reads.layer != site.layer):
        shapes = site_shapes(model, 1)
        known = ", ".join(f"`{Site(site.layer, kind)}`" for kind in _READS if Site(site.layer, kind) in shapes)
        wanted = "that site itself" if site.kind == Kind.ATTN_OUT else f"one of {known}, or that site itself"
        raise ValueError(f"{what}: the dictionary for `{site}` reads `{reads}`. In a graph it has to read {wanted}.")


def _check_layer(what: str, model: Transformer, site: Site, reads: Site) -> None:
    """ValueError unless a layer of a cross-layer transcoder stands for an MLP, and reads in front of it."""
    if site.kind != Kind.MLP_OUT or reads.layer != site.layer or reads.kind not in _READS:
        raise ValueError(
            f"{what}: layer {site.layer} of this cross-layer transcoder reads `{reads}` and writes `{site}`. In a graph of {model.name} it "
            f"has to write `{Site(site.layer, Kind.MLP_OUT)}` and read what is in front of an MLP or attention there."
        )


def _check_whole(what: str, model: Transformer, found: Mapping[Site, AbstractDictionary]) -> None:
    """ValueError if some MLPs have a dictionary and others have none."""
    mlps = [Site(layer, Kind.MLP_OUT) for layer, block in enumerate(model.blocks) if block.mlp is not None]
    missing = [site for site in mlps if site not in found]
    if missing and len(missing) < len(mlps):
        raise ValueError(
            f"{what}: there is none for `{missing[0]}`{f' and {len(missing) - 1} more layers' if missing[1:] else ''}. Give one for each "
            "MLP, or for none, so that neurons stand for all of them."
        )
