"""The replacement model: which latents stand for which parts of a model, what they read, and what they write where."""

import dataclasses
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide
from .._run import site_shapes
from .._sites import Kind, layer_of, Site
from .._tap import site_read
from ..models import Transformer
from ..parts import GatedMLP
from ..saes import AbstractDictionary, CrossLayerTranscoder, Identity, SAE
from ._encoder import apply_held
from ._given import given_dictionaries, Transcoders


OF_ATTENTION = (Kind.Z, Kind.HEADS_OUT, Kind.ATTN_OUT)
OF_MLP = (Kind.MLP_POST, Kind.NEURONS_OUT, Kind.MLP_OUT)


class LatentSites(eqx.Module):
    """Latents by the site that their dictionary reconstructs: `own` write there alone, those of `across` to later layers, too. Neurons are
    latents of an `Identity` at `mlp.hook_post`; `gated` are those of gated MLPs, `seen_through` those of MLPs whose output is read by
    latents.
    """

    own: dict[Site, AbstractDictionary]
    across: CrossLayerTranscoder | None
    gated: frozenset[Site] = eqx.field(static=True)
    seen_through: frozenset[Site] = eqx.field(static=True)

    @property
    def sites(self) -> tuple[Site, ...]:
        """Where there are latents, in execution order."""
        return tuple(sorted([*self.own, *self._across_sites]))

    @property
    def _across_sites(self) -> tuple[Site, ...]:
        return () if self.across is None else self.across.sites

    def _layer(self, site: Site) -> tuple[CrossLayerTranscoder, int]:
        """The cross-layer transcoder, and the number of its layer at `site`."""
        assert self.across is not None
        return self.across, self.across.sites.index(site)

    def d_sae(self, site: Site) -> int:
        """How many latents there are at `site`."""
        if site in self.own:
            return self.own[site].d_sae
        across, layer = self._layer(site)
        return across.W_enc[layer].shape[1]

    def reads(self, site: Site) -> Site:
        """What the latents at `site` are encoded from."""
        if site in self.own:
            return site_read(site, self.own[site])
        across, layer = self._layer(site)
        return across.reads[layer]

    def observed(self, site: Site) -> Site:
        """What their pre-activations are computed from: of neurons what is linear in the MLP's input, of others what they read."""
        if self.is_neurons(site):
            return self.into_neurons(site)
        return self.reads(site)

    def into_neurons(self, neurons: Site) -> Site:
        """What neurons are linear in while their gates are held."""
        return Site(neurons.layer, Kind.MLP_PRE_LINEAR if neurons in self.gated else Kind.MLP_PRE)

    def is_neurons(self, site: Site) -> bool:
        """Whether the latents at `site` are the neurons themselves."""
        return site.kind == Kind.MLP_POST and isinstance(self.own.get(site), Identity)

    def encode(self, site: Site, x: Float[Array, "seq d_in"]) -> Float[Array, "seq d_sae"]:
        """Computes the latents at `site` from what they read."""
        if site in self.own:
            return self.own[site].encode(x)
        across, layer = self._layer(site)
        return across.encode(layer, x)

    def pre_activations(
        self, site: Site, x: Float[Array, "seq d_in"], held_at: Float[Array, "seq d_in"] | None = None
    ) -> Float[Array, "seq d_sae"]:
        """Computes their pre-activations from what is `observed`; the scale of a dictionary's normalisation can be held at its value for
        another input.
        """
        if site in self.own:
            sae = self.own[site]
            if held_at is None or not isinstance(sae, SAE) or sae.normalisation is None:
                return sae.pre_activations(x)
            x = jax.vmap(ft.partial(apply_held, sae.normalisation))(held_at, x)
            return dataclasses.replace(sae, normalisation=None).pre_activations(x)
        across, layer = self._layer(site)
        return across.pre_activations(layer, x)

    def slopes(self, site: Site, x: Float[Array, "seq d_in"]) -> Float[Array, "seq d_sae"]:
        """Computes the derivatives of a dictionary's latents by their pre-activations, from what they read."""
        if site in self.own:
            return self.own[site].slopes(x)
        across, layer = self._layer(site)
        return across.slopes(layer, x)

    def targets(self, site: Site) -> tuple[Site, ...]:
        """Where the latents at `site` write."""
        if site in self.own:
            return (site,)
        across, layer = self._layer(site)
        return across.sites[layer:]

    def write(self, site: Site, target: Site, acts: Float[Array, "seq d_sae"]) -> Float[Array, "seq d_out"]:
        """Computes what latents write at `target`, without a bias and before a dictionary's normalisation is undone."""
        if site in self.own:
            sae = self.own[site]
            # [seq d_sae] · [d_sae d_out] -> [seq d_out]
            return acts if isinstance(sae, Identity) else acts @ wide(sae.W_dec)
        across, layer = self._layer(site)
        return across.decoders[layer].decode(acts, across.sites.index(target) - layer)

    def rows(self, site: Site, target: Site, units: Int[Array, " n"]) -> Float[Array, "n d_out"]:
        """Takes the directions that some of them write at `target`; of a decoder in its file only these are read."""
        if site in self.own:
            return wide(take(self.own[site].W_dec, units))
        across, layer = self._layer(site)
        return across.decoder_rows(layer, units, across.sites.index(target))

    def skip(self, site: Site) -> Float[Array, "d_in d_out"] | None:
        """The linear path from what the dictionary at `site` reads to what it reconstructs, if there is one."""
        if site not in self.own:
            across, layer = self._layer(site)
            return None if across.W_skip is None else wide(across.W_skip[layer])
        W = getattr(self.own[site], "W_skip", None)
        return None if W is None else wide(W)

    def decoder_scale(self, site: Site, x: Float[Array, "seq d_in"]) -> Float[Array, " seq"]:
        """By what a dictionary's normalisation stretches what is written at `site`."""
        return self.own[site].decoder_scale(x) if site in self.own else jnp.ones(x.shape[:1], x.dtype)


def find_latents(verb: str, model: Transformer, transcoders: Transcoders) -> LatentSites:
    """Puts dictionaries in their places, and neurons where there are none.

    **Raises:** `TypeError` for what is no dictionary, `ValueError` for one of another site or width, and for two of one MLP.
    """
    found = given_dictionaries(verb, model, transcoders, ft.partial(_check_place, verb))
    across = found if isinstance(found, CrossLayerTranscoder) else None
    own = {} if isinstance(found, CrossLayerTranscoder) else dict(found)
    shapes = site_shapes(model, 1)
    places = [(site, site_read(site, sae)) for site, sae in own.items()]
    places += [] if across is None else list(zip(across.sites, across.reads, strict=True))
    width = lambda site: shapes[site].size
    of_mlp = [site.layer for site, _ in places if site.kind in OF_MLP]
    if twice := [layer for layer in of_mlp if of_mlp.count(layer) > 1]:
        raise ValueError(
            f"{verb}: two dictionaries stand for the MLP of layer {twice[0]}. Give one for each MLP: at `hook_mlp_out`, or neurons at "
            "`mlp.hook_post`."
        )
    bare = [i for i, block in enumerate(model.blocks) if block.mlp is not None and i not in of_mlp]
    neurons = {site: _neurons(model, site, width(site)) for site in (Site(i, Kind.MLP_POST) for i in bare)}
    everywhere = {i: Site(i, Kind.MLP_POST) for i, block in enumerate(model.blocks) if block.mlp is not None}
    gated = {site for i, site in everywhere.items() if isinstance(model.blocks[i].mlp, GatedMLP)}
    seen = {everywhere[layer_of(site)] for site, reads in places if reads.kind in (Kind.NEURONS_OUT, Kind.MLP_OUT)}
    return LatentSites({**own, **neurons}, across, frozenset(gated), frozenset(seen))


def _neurons(model: Transformer, site: Site, width: int) -> Identity:
    unit = jnp.ones((), model.activation_dtype)
    return Identity(width=width, site=site, unit=unit)  # pyright: ignore[reportCallIssue]  # its bases are properties, and no fields


def _check_place(verb: str, site: Site, reads: Site) -> None:
    if site.kind not in (*OF_ATTENTION, *OF_MLP):
        raise ValueError(
            f"{verb}: a dictionary at `{site}` stands for no part of the model. Give transcoders that write at `hook_mlp_out`, or "
            "dictionaries on what attention and MLPs write."
        )
    if site < reads:
        raise ValueError(f"{verb}: the transcoder at `{site}` reads `{reads}`, which comes behind it.")
