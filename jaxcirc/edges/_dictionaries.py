"""Dictionaries as edges see them: latents that read at one site and write at one, or of a cross-layer transcoder at several."""

from collections.abc import Mapping
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._checks import check_kind
from .._precision import wide
from .._run import site_shapes
from .._sites import by_site, did_you_mean, Site
from .._tap import site_read
from ..models import Transformer
from ..nodes import Index
from ..runs import check_saes
from ..saes import AbstractDictionary, CrossLayerTranscoder, Decoder


Dictionary: TypeAlias = AbstractDictionary | CrossLayerTranscoder
Dictionaries: TypeAlias = dict[Site, Dictionary]
Given: TypeAlias = Mapping[Site, Dictionary] | Mapping[str, Dictionary]


def given_dictionaries(what: str, model: Transformer, saes: Given) -> Dictionaries:
    """`saes` keyed by sites. **Raises:** `ValueError`, `TypeError` for one that is none, and one that does not fit its site."""
    found = by_site(saes)
    for site, each in found.items():
        check_kind(f"{what}: saes at `{site}`", each, (AbstractDictionary, CrossLayerTranscoder), "a dictionary")
    if plain := {site: each for site, each in found.items() if isinstance(each, AbstractDictionary)}:
        check_saes(model, plain)
    for site, each in found.items():
        if isinstance(each, CrossLayerTranscoder):
            _check_cross_layer(what, model, site, each)
            if missing := [other for other in each.sites if found.get(other) is not each]:
                raise ValueError(
                    f"{what}: the cross-layer transcoder at `{site}` is missing at `{missing[0]}`, where its latents write too. Give "
                    "all of it: saes={site: clt for site in clt.sites}."
                )
    return found


def _check_cross_layer(what: str, model: Transformer, site: Site, clt: CrossLayerTranscoder) -> None:
    if site not in clt.sites:
        hint = did_you_mean(str(site), map(str, clt.sites))
        raise ValueError(
            f"{what}: the cross-layer transcoder given for `{site}` has no latents there. Key it by its sites: "
            f"saes={{site: clt for site in clt.sites}}. {hint}"
        )
    shapes = site_shapes(model, 1)
    for each, width in [*((s, clt.d_in) for s in clt.reads), *((s, clt.d_out) for s in clt.sites)]:
        if each not in shapes or shapes[each].shape[1:] != (width,):
            raise ValueError(
                f"{what}: the cross-layer transcoder reads or writes {width} numbers at `{each}`, and {model.name} has "
                f"{list(shapes[each].shape[1:]) if each in shapes else 'no such site'}. Was it trained for another model?"
            )


def reads(site: Site, dictionary: Dictionary) -> Site:
    """The site that the latents at `site` read."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.reads[dictionary.sites.index(site)]
    return site_read(site, dictionary)


def sites_of(dictionaries: Dictionaries) -> set[Site]:
    """Every site that some latents read or write."""
    written = {target for site, each in dictionaries.items() for target in writes(site, each)}
    return written | {reads(site, each) for site, each in dictionaries.items()}


def writes(site: Site, dictionary: Dictionary) -> tuple[Site, ...]:
    """The sites that the latents at `site` write, the first one first."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.sites[dictionary.sites.index(site) :]
    return (site,)


def encode(site: Site, dictionary: Dictionary, x: Float[Array, "seq d_in"]) -> Float[Array, "seq d_sae"]:
    """The latents at `site` of what they read."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.encode(dictionary.sites.index(site), x)
    return dictionary.encode(x)


def slopes(site: Site, dictionary: Dictionary, x: Float[Array, "seq d_in"]) -> Float[Array, "seq d_sae"]:
    """Their derivatives by their own pre-activations."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.slopes(dictionary.sites.index(site), x)
    return dictionary.slopes(x)


def covector(site: Site, dictionary: Dictionary, x: Float[Array, "1 d_in"], unit: Index) -> Float[Array, "1 d_in"]:
    """How one latent's pre-activation reads what is at one position."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return wide(dictionary.W_enc[dictionary.sites.index(site)][:, unit])[None]
    return dictionary.pull_input(x, wide(dictionary.W_enc[:, unit])[None])


def encode_tangent(
    site: Site, dictionary: Dictionary, x: Float[Array, "n d_in"], tangent: Float[Array, "n d_in"]
) -> Float[Array, "n d_sae"]:
    """How all pre-activations change with what they read."""
    if isinstance(dictionary, CrossLayerTranscoder):
        return tangent @ wide(dictionary.W_enc[dictionary.sites.index(site)])
    # The transpose of `pull_input`, which is linear in its covectors.
    pushed = jax.linear_transpose(lambda c: dictionary.pull_input(x, c), jax.ShapeDtypeStruct(x.shape, tangent.dtype))
    return pushed(tangent)[0] @ wide(dictionary.W_enc)


def error(
    site: Site,
    dictionary: Dictionary,
    x: Float[Array, "seq d_in"],
    value: Float[Array, "seq d_out"],
    acts: Mapping[Site, Float[Array, "seq _"]],
) -> Float[Array, "seq d_out"]:
    """What the dictionary at `site` leaves of the value there, given the latents of all sites."""
    if isinstance(dictionary, CrossLayerTranscoder):
        own = dictionary.sites.index(site)
        return value - dictionary.decode(own, [acts[each] for each in dictionary.sites[: own + 1]], x)
    return value - dictionary.decode(acts[site], x)


def write(
    site: Site, dictionary: Dictionary, x: Float[Array, "1 d_in"], unit: Index, target: Site
) -> Float[Array, "1 d_out"]:
    """What one latent at one position writes at `target`, for each unit of its activation."""
    if isinstance(dictionary, CrossLayerTranscoder):
        own = dictionary.sites.index(site)
        return dictionary.decoder_rows(own, jnp.asarray(unit)[None], dictionary.sites.index(target))
    return dictionary.decoder_scale(x)[:, None] * wide(dictionary.W_dec[unit])[None]


def read_writes(
    site: Site,
    dictionary: Dictionary,
    x: Float[Array, "row d_in"],
    acts: Float[Array, "row d_sae"],
    covectors: Float[Array, "row d_out"],
    target: Site,
) -> Float[Array, "row d_sae"]:
    """What every latent writes at `target`, along covectors there, for each unit of its activation; of a decoder in its file the latents
    that are on are read, and the others are 0.
    """
    if not isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.decoder_scale(x)[:, None] * (covectors @ wide(dictionary.W_dec).T)
    own, to = dictionary.sites.index(site), dictionary.sites.index(target)
    decoder = dictionary.decoders[own]
    if isinstance(decoder, Decoder):
        return covectors @ wide(decoder.W_dec[:, to - own]).T
    if isinstance(acts, Tracer):
        raise ValueError(
            "A decoder that stays in its file is read for the latents that are on, which under `jit` and `vmap` is not known. Load it "
            "into memory, or compute one node at a time."
        )
    units = np.flatnonzero((np.asarray(acts) != 0).any(0))
    rows = dictionary.decoder_rows(own, units, to)
    return jnp.zeros((len(x), decoder.shape[0]), covectors.dtype).at[:, units].set(covectors @ rows.T)


def write_rows(
    site: Site, dictionary: Dictionary, x: Float[Array, "seq d_in"], target: Site
) -> tuple[Float[Array, " seq"], Float[Array, "d_sae d_out"]]:
    """The direction that each latent writes at `target`, and by what that is stretched at each position."""
    if not isinstance(dictionary, CrossLayerTranscoder):
        return dictionary.decoder_scale(x), wide(dictionary.W_dec)
    own, to = dictionary.sites.index(site), dictionary.sites.index(target)
    return jnp.ones(len(x), x.dtype), dictionary.decoder_rows(own, np.arange(dictionary.decoders[own].shape[0]), to)
