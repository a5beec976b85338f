"""The dictionaries that a verb of graphs is given, checked before anything is computed: of this model, and each for a place that it has."""

import warnings
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from .._checks import check_kind
from .._run import check_dictionaries, site_shapes
from .._sites import by_site, did_you_mean, Kind, layer_of, Site
from .._tap import site_read
from ..models import check_known, Transformer
from ..saes import AbstractDictionary, CrossLayerTranscoder, mismatch, Saes, Transcoder


Transcoders: TypeAlias = Saes | CrossLayerTranscoder | None  # None: neurons alone
Dictionaries = Mapping[Site, AbstractDictionary] | CrossLayerTranscoder


def given_dictionaries(
    verb: str, model: Transformer, given: Transcoders, check_place: Callable[[Site, Site], None]
) -> Dictionaries:
    """Dictionaries by site, or a cross-layer transcoder; none at all where neurons stand for MLPs. `check_place` refuses a site, or what is
    read for it, that a verb has no use for.

    **Raises:** `TypeError` for what is no dictionary, `ValueError` for one of another model, site or width.
    """
    shapes, what = site_shapes(model, 1), f"{verb}: transcoders"
    check_kind(
        what,
        given,
        (Mapping, CrossLayerTranscoder, type(None)),
        "a mapping from sites to dictionaries, as jc.load_saes gives one, a cross-layer transcoder, or None for neurons",
    )
    across = given if isinstance(given, CrossLayerTranscoder) else None
    own = {} if isinstance(given, CrossLayerTranscoder) else by_site(given or {})
    for site, sae in own.items():
        check_kind(f"{what}: at `{site}`", sae, AbstractDictionary, "a dictionary, as jc.load_sae gives one")
        if isinstance(sae, Transcoder) and sae.reads is None:
            raise ValueError(
                f"{what}: the transcoder for `{site}` does not say which site it reads. Make it with reads=…."
            )
    places = [(site, site_read(site, sae)) for site, sae in own.items()]
    places += [] if across is None else list(zip(across.sites, across.reads, strict=True))
    for site, reads in places:
        for wanted in (site, reads):
            if wanted not in shapes:
                hint = did_you_mean(str(wanted), map(str, shapes))
                raise ValueError(f"{what}: no site `{wanted}` in {model.name} with {model.n_layers} layers. {hint}")
        check_place(site, reads)
        if reads.kind in (Kind.NEURONS_OUT, Kind.MLP_OUT):
            _check_gates(verb, model, layer_of(reads), there=Site(reads.layer, Kind.MLP_GATE) in shapes)
    check_dictionaries(model, own)
    widths = lambda site, reads: tuple(int(np.prod(shapes[each].shape[1:])) for each in (reads, site))
    for site, sae in own.items():
        sae.check_width(site, *widths(site, site_read(site, sae)))
    if across is None:
        return own
    for layer, place in enumerate(places):
        got, want = (across.W_enc[layer].shape[0], across.b_dec[layer].shape[0]), widths(*place)
        if got != want:
            raise ValueError(
                f"{what}: layer {layer} of this cross-layer transcoder maps {got[0]} numbers to {got[1]}, and there {model.name} has "
                f"{want[0]} and {want[1]}. Was it trained for another model?"
            )
    if steps := {
        step for place in places for site in place for step in mismatch(site, across.processing, model.processing)
    }:
        warnings.warn(
            f"The cross-layer transcoder was trained on weights processed otherwise than {model.name}'s: they differ by "
            f"{', '.join(sorted(steps))}, so its reconstructions will be poor. See jc.process_weights.",
            stacklevel=4,
        )
    return across


def _check_gates(verb: str, model: Transformer, layer: int, *, there: bool) -> None:
    """ValueError unless an MLP has gates to hold, so that what reads what it makes sees through it."""
    check_known(f"{verb} with dictionaries that read `hook_mlp_out`", model, "mlp")
    if not there:
        raise ValueError(
            f"{verb}: dictionaries that read `hook_mlp_out` see through the MLP with its gates held, and that of layer {layer} has none: "
            "its activation function is not elementwise. Give transcoders that read what is in front of the MLP."
        )
