"""What may stand for a model's sublayers: checked before anything is computed."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import check_kind
from .._run import check_dictionaries, site_shapes
from .._sites import by_site, did_you_mean, Kind, Part, Site
from .._tap import site_read
from ..models import check_known, Transformer
from ..saes import AbstractDictionary, CrossLayerTranscoder, mismatch, Transcoder
from ._held_maps import BEFORE_ATTENTION, BEFORE_MLP
from ._replacement import Dictionaries


_VERB = "attribution_graph: transcoders"
_READS = (*BEFORE_ATTENTION, *BEFORE_MLP)


def checked_dictionaries(model: Transformer, given: Any) -> Dictionaries:
    """Dictionaries by site, or a cross-layer transcoder; none at all where neurons stand for MLPs.

    **Raises:** `ValueError` for those of another model or site, for layers that are missing, and for what a graph has no place for.
    """
    check_known("attribution_graph", model)
    if isinstance(given, CrossLayerTranscoder):
        _check_cross_layer(model, given)
        return given
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"{_VERB}: expected a mapping from sites to dictionaries, as jc.load_saes gives one, a cross-layer transcoder, or None for "
            f"neurons; got a {type(given).__name__}."
        )
    found = by_site(given or {})
    shapes = site_shapes(model, 1)
    for site, sae in found.items():
        _check_place(model, shapes, site, sae)
    check_dictionaries(model, found)
    _check_whole(model, found)
    _check_mlps(model, found)
    return found


def _check_place(model: Transformer, shapes: Mapping[Site, Any], site: Site, sae: Any) -> None:
    check_kind(f"{_VERB}: at `{site}`", sae, AbstractDictionary, "a dictionary, as jc.load_sae gives one")
    if site.kind not in (Kind.MLP_OUT, Kind.ATTN_OUT) or site.part != Part.VALUE:
        raise ValueError(
            f"{_VERB}: a dictionary of a graph stands for what a sublayer adds, `hook_mlp_out` or `hook_attn_out` of a layer; got one for "
            f"`{site}`. Residual streams are no sublayer: jc.discover takes their dictionaries."
        )
    if isinstance(sae, Transcoder) and sae.reads is None:
        raise ValueError(
            f"{_VERB}: the transcoder for `{site}` does not say which site it reads. Make it with reads=…."
        )
    read = site_read(site, sae)
    for wanted in (site, read):
        if wanted not in shapes:
            hint = did_you_mean(str(wanted), map(str, shapes))
            raise ValueError(f"{_VERB}: no site `{wanted}` in {model.name} with {model.n_layers} layers. {hint}")
    if read != site and (site.kind == Kind.ATTN_OUT or read.kind not in _READS or read.layer != site.layer):
        known = ", ".join(f"`{Site(site.layer, kind)}`" for kind in _READS if Site(site.layer, kind) in shapes)
        wanted = "that site itself" if site.kind == Kind.ATTN_OUT else f"one of {known}, or that site itself"
        raise ValueError(f"{_VERB}: the dictionary for `{site}` reads `{read}`. In a graph it has to read {wanted}.")
    sae.check_width(site, *(int(np.prod(shapes[s].shape[1:])) for s in (read, site)))


def _check_whole(model: Transformer, found: Mapping[Site, AbstractDictionary]) -> None:
    """ValueError if some MLPs have a dictionary and others have none."""
    mlps = [Site(layer, Kind.MLP_OUT) for layer, block in enumerate(model.blocks) if block.mlp is not None]
    missing = [site for site in mlps if site not in found]
    if missing and len(missing) < len(mlps):
        raise ValueError(
            f"{_VERB}: there is none for `{missing[0]}`{f' and {len(missing) - 1} more layers' if missing[1:] else ''}. Give one for each "
            "MLP, or for none, so that neurons stand for all of them."
        )


def _check_mlps(model: Transformer, found: Mapping[Site, AbstractDictionary]) -> None:
    """ValueError where an MLP's own weights are needed and its class is not known."""
    at_mlps = [site for site in found if site.kind == Kind.MLP_OUT]
    if not at_mlps:
        check_known("attribution_graph with neurons", model, "mlp", "ln2_post")
    elif any(site_read(site, found[site]) == site for site in at_mlps):
        check_known("attribution_graph with dictionaries that read `hook_mlp_out`", model, "mlp")


def _check_cross_layer(model: Transformer, clt: CrossLayerTranscoder) -> None:
    if clt.n_layers != model.n_layers:
        raise ValueError(
            f"{_VERB}: this cross-layer transcoder is of {clt.n_layers} layers, and {model.name} has {model.n_layers}. Was it trained for "
            "another model?"
        )
    shapes = site_shapes(model, 1)
    for layer, (read, site) in enumerate(zip(clt.reads, clt.sites, strict=True)):
        if site != Site(layer, Kind.MLP_OUT) or read.layer != layer or read.kind not in _READS or read not in shapes:
            raise ValueError(
                f"{_VERB}: layer {layer} of this cross-layer transcoder reads `{read}` and writes `{site}`. In a graph of {model.name} it "
                f"has to write `{Site(layer, Kind.MLP_OUT)}` and read what is in front of an MLP or attention there."
            )
        widths = clt.W_enc[layer].shape[0], clt.b_dec[layer].shape[0]
        expected = tuple(int(np.prod(shapes[s].shape[1:])) for s in (read, site))
        if widths != expected:
            raise ValueError(
                f"{_VERB}: layer {layer} of this cross-layer transcoder maps {widths[0]} numbers to {widths[1]}, and there {model.name} "
                f"has {expected[0]} and {expected[1]}. Was it trained for another model?"
            )
        if steps := {
            *mismatch(site, clt.processing, model.processing),
            *mismatch(read, clt.processing, model.processing),
        }:
            warnings.warn(
                f"The cross-layer transcoder was trained on weights processed otherwise than {model.name}'s: they differ by "
                f"{', '.join(sorted(steps))}, so its reconstructions will be poor. See jc.process_weights.",
                stacklevel=4,
            )
            return
