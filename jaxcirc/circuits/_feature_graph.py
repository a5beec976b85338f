"""The model as a graph of features, run with a value of its own along every edge.

In an ordinary run all nodes read the same values upstream. Here every target reads its own mixture: along some edges what the source is
in this run, along the others what it is ablated to. So each target is a run of the blocks between it and its sources, and all targets
of a site are one `vmap`; blocks and sites are relative, so that all layers share a program.
"""

import functools as ft
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Replace
from .._metrics import Metric
from .._run import run, run_metric
from .._sites import Kind, layer_of, Site
from .._tap import site_read, Tap
from ..graph import as_output, canonical
from ..models import Transformer
from ..runs import rounded_up
from ..saes import AbstractDictionary, anonymous
from ._ablations import Nodes


EMBED = Site(None, Kind.EMBED)
Masks = Mapping[Site, Bool[np.ndarray, "target source_seq node"]]  # source_seq: 1 for all positions, or each


class Clean(NamedTuple):
    """The clean run of a batch: its padding, what enters each block, and the values where dictionaries are and where they read, flat."""

    tokens: Int[Array, "batch seq"]
    keys: Bool[Array, "batch seq"]
    resid: dict[Site, Float[Array, "batch seq d_model"]]
    values: dict[Site, Float[Array, "batch seq _"]]


class Source(NamedTuple):
    """What a site sends: its nodes in this run, and ablated; and the dictionary with what it read, which decode them."""

    sae: AbstractDictionary
    read: Float[Array, "*batch seq d_in"]
    now: Nodes
    ablated: Nodes

    def mixed(self, mask: Bool[Array, "source_seq node"]) -> Float[Array, "seq width"]:
        """The value at the site, of one prompt, where the nodes of `mask` are what they are in this run."""
        acts = jnp.where(mask[:, :-1], self.now.acts, self.ablated.acts)
        error = jnp.where(mask[:, -1:], self.now.error, self.ablated.error)
        return self.sae.decode(acts, self.read) + error


@jax.jit
def clean_run(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    tokens: Int[Array, "batch seq"],
    keys: Bool[Array, "batch seq"],
) -> tuple[Clean, dict[Site, Nodes]]:
    """The clean run, and its nodes."""
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)]
    wanted = {*saes, *(site_read(site, sae) for site, sae in saes.items())}

    def one(tokens, keys):
        cache = run(model, tokens, record={*cuts, *wanted}, mask=keys)[1]
        flat = {site: value.reshape(value.shape[0], -1) for site, value in cache.items()}
        return flat, {site: _split(sae, flat[site_read(site, sae)], flat[site]) for site, sae in saes.items()}

    flat, nodes = jax.vmap(one)(tokens, keys)
    return Clean(tokens, keys, {s: flat[s] for s in cuts}, {s: flat[s] for s in wanted}), nodes


def _split(
    sae: AbstractDictionary,
    read: Float[Array, "seq d_in"],
    value: Float[Array, "seq width"],
    beside: Float[Array, "seq d_in"] | None = None,
) -> Nodes:
    """Latents, and the error that they leave where the decoder reads `beside`, by default what was encoded."""
    acts = sae.encode(read)
    return Nodes(acts, value - sae.decode(acts, read if beside is None else beside))


@jax.jit
def nodes_beside(saes: Mapping[Site, AbstractDictionary], of: Clean, beside: Clean) -> dict[Site, Nodes]:
    """The nodes of a run as decoders that read what they read in another one leave them."""
    split = jax.vmap(_split, in_axes=(None, 0, 0, 0))
    read = {site: site_read(site, sae) for site, sae in saes.items()}
    return {s: split(sae, of.values[read[s]], of.values[s], beside.values[read[s]]) for s, sae in saes.items()}


def held_inputs(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    tokens: Int[Array, " seq"],
    keys: Bool[Array, " seq"],
) -> dict[Site, Replace]:
    """The edits of one prompt that hold what decoders read beside their latents at its clean value."""
    reads = {site: site_read(site, sae) for site, sae in saes.items() if sae.decoder_reads_input}
    clean = run(model, tokens, record=set(reads.values()), mask=keys)[1] if reads else {}
    return {site.input: Replace(clean[read]) for site, read in reads.items()}


def targets_at(
    model: Transformer,
    sae: AbstractDictionary,
    site: Site,
    clean: Clean,
    sources: Mapping[Site, Source],
    masks: Masks,
    units: Int[np.ndarray, " target"],
) -> Float[Array, "batch target seq ..."]:
    """What targets at `site` are, each for its own mixture of the sources that lead to it directly.

    **Arguments:** - `masks`: which nodes of each source a target reads as they are in this run. - `units`: the latents that the targets
    are; or `d_sae`, all of them, for the error.

    **Returns:** `[batch target seq]` for latents, `[batch target seq width]` for errors.
    """
    what = "error" if units[0] == sae.d_sae else "latents"
    rows = np.minimum(np.arange(rounded_up(len(units))), len(units) - 1)
    some = {source: mask[rows] for source, mask in masks.items()}
    return _mixtures(model, sae, site, clean, sources, some, units[rows], what)[:, : len(units)]


def everything_at(
    model: Transformer, sae: AbstractDictionary, site: Site, clean: Clean, sources: Mapping[Site, Source], masks: Masks
) -> Nodes:
    """All nodes at `site` for one mixture of the sources, `masks` `[1 source_seq node]`."""
    found = _mixtures(model, sae, site, clean, sources, masks, np.zeros(1, int), "all")
    return jax.tree.map(lambda x: x[:, 0], found)


def _mixtures(model, sae, site: Site, clean: Clean, sources: Mapping[Site, Source], masks: Masks, units, what: str):
    read, last = site_read(site, sae), layer_of(as_output(site))
    # A transcoder may read what enters the first of the sources' blocks, or something earlier.
    begins = sources if read == site else (*sources, read)
    first = min(layer_of(canonical(begin)) for begin in begins)
    within = lambda end: canonical(end) if layer_of(canonical(end)) <= last else as_output(end)
    blocks = slice(first, last + 1)
    attending = model.batch_masks(clean.keys)[blocks]
    places = {source: canonical(source).offset_layers(-first) for source in sources}
    sent = {places[source]: sources[source]._replace(sae=anonymous(sources[source].sae)) for source in sources}
    # The embedding's nodes are without the position, which enters beside them.
    beside = clean.resid[Site(0, Kind.RESID_PRE)] - clean.values[EMBED] if EMBED in sources else None
    return _targets(
        model.blocks[blocks],
        attending,
        clean.resid[Site(first, Kind.RESID_PRE)],
        anonymous(sae),
        sent,
        beside,
        {places[source]: jnp.asarray(masks[source]) for source in sources},
        jnp.asarray(units, jnp.int32),
        clean.values[read],
        ends=tuple(within(end).offset_layers(-first) for end in (read, site)),
        what=what,
    )


@ft.partial(jax.jit, static_argnames=("ends", "what"))
def _targets(blocks, attending, resid, sae, sources, beside, masks, units, read, *, ends: tuple[Site, Site], what: str):
    seq = resid.shape[1]
    decoders = {place: source.sae for place, source in sources.items()}
    # As many targets at once as keep a few megabytes of latents in flight.
    together = max(1, 2**22 // (seq * sum(source.sae.d_sae for source in sources.values()) + seq * sae.d_sae))

    def one(example):
        attending, resid, values, beside, read = example

        def target(mask, unit):
            tap, x = Tap({}, _replaced(blocks, decoders, values, mask, beside), frozenset(ends)), resid
            for layer, (block, mask_of_block) in enumerate(zip(blocks, attending, strict=True)):
                x = block(x, mask_of_block, tap.at(layer))
            here, value = (tap.cache[end].reshape(seq, -1) for end in ends)
            nodes = _split(sae, here, value, read)
            return nodes if what == "all" else nodes.error if what == "error" else nodes.acts[:, unit]

        return jax.lax.map(lambda both: target(*both), (masks, units), batch_size=min(together, len(units)))

    values = {place: source[1:] for place, source in sources.items()}
    return jax.lax.map(one, (attending, resid, values, beside, read))


@jax.jit
def metric_at(
    model: Transformer,
    clean: Clean,
    metric: Metric,
    sources: Mapping[Site, Source],
    masks: Mapping[Site, Bool[Array, "source_seq node"]],
) -> Float[Array, " batch"]:
    """The metric for its own mixture of the sources that lead to it directly."""
    decoders = {site: source.sae for site, source in sources.items()}

    def one(tokens, keys, metric, values):
        edits = _replaced(model.blocks, decoders, values, masks)
        return run_metric(model, metric, tokens, edits=edits, mask=keys)[0]

    return jax.vmap(one)(clean.tokens, clean.keys, metric, {site: source[1:] for site, source in sources.items()})


def _replaced(blocks, decoders, values, masks, beside=None) -> dict[Site, Replace]:
    """The edits that put its mixture at the site of every source. `values`: of each what `Source` has but its dictionary; `beside`: what
    enters the first block with the embedding's nodes.
    """
    edits = {}
    for site, (read, now, ablated) in values.items():
        value = Source(decoders[site], read, now, ablated).mixed(masks[site])
        if beside is not None and site == Site(0, Kind.RESID_PRE):
            value = value + beside
        edits[site] = Replace(value.reshape(-1, *blocks[0].attn.W_Q.shape[::2]) if site.kind == Kind.Z else value)
    return edits
