"""Random transcoders for the registry's models, per layer and cross-layer."""

import functools as ft

import jax
import jax.numpy as jnp

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.saes import CrossLayerTranscoder, Decoder, JumpReLU, ReLU, TopK, Transcoder

from . import oracle
from .helpers import model_named, tokens_for


def of_mlps(model: jc.Transformer) -> list[int]:
    """The layers that have an MLP."""
    return [layer for layer, block in enumerate(model.blocks) if block.mlp is not None]


def random_transcoders(key, model: jc.Transformer, *, last: bool = False) -> dict[Site, jc.saes.AbstractDictionary]:
    """A transcoder with a linear path for each MLP but the last, whose neurons are left unless it has one, too, of different activations;
    for attention without MLPs a dictionary of what the first layer's writes.
    """
    if not of_mlps(model):
        site = Site(0, Kind.ATTN_OUT)
        return {site: oracle.random_sae(key, site, model.d_model, model.d_model + 3, ReLU(), centred=True)}
    made, width = {}, model.d_model
    for layer in of_mlps(model)[: None if last else -1]:
        site, reads = Site(layer, Kind.MLP_OUT), Site(layer, Kind.MLP_IN)
        own = jax.random.fold_in(key, layer)
        activation = (ReLU(), JumpReLU(jnp.asarray(0.1)), TopK(6))[layer % 3]
        skip = 0.3 * jax.random.normal(jax.random.fold_in(own, 4), (width, width)) / width**0.5
        made[site] = Transcoder(*oracle.random_arrays(own, width, width + 4), activation, reads, site, W_skip=skip)
    return made


def random_cross_layer(key, model: jc.Transformer, *, skip: bool = False) -> CrossLayerTranscoder:
    """One that stands for all MLPs."""
    layers, width, d_sae = model.n_layers, model.d_model, model.d_model + 5
    arrays = [oracle.random_arrays(jax.random.fold_in(key, layer), width, d_sae) for layer in range(layers)]
    normal = lambda number, *shape: jax.random.normal(jax.random.fold_in(key, 100 + number), shape) / d_sae**0.5
    return CrossLayerTranscoder(
        W_enc=tuple(W_enc for W_enc, *_ in arrays),
        b_enc=tuple(b_enc for _, b_enc, *_ in arrays),
        decoders=tuple(Decoder(normal(layer, d_sae, layers - layer, width)) for layer in range(layers)),
        b_dec=tuple(b_dec for *_, b_dec in arrays),
        activations=(ReLU(),) * layers,
        reads=tuple(Site(layer, Kind.MLP_IN) for layer in range(layers)),
        sites=tuple(Site(layer, Kind.MLP_OUT) for layer in range(layers)),
        W_skip=tuple(0.3 * normal(50 + layer, width, width) for layer in range(layers)) if skip else None,
    )


def with_neurons(model: jc.Transformer, transcoders) -> dict[Site, jc.saes.AbstractDictionary]:
    """The same dictionaries, and neurons where there are none."""
    bare = [layer for layer in of_mlps(model) if Site(layer, Kind.MLP_OUT) not in transcoders]
    sites = [Site(layer, Kind.MLP_POST) for layer in bare]
    width = lambda layer: model.blocks[layer].mlp.W_out.shape[0]
    unit = jnp.ones((), model.activation_dtype)
    return {**transcoders, **{s: jc.saes.Identity(width(s.layer), s, unit=unit) for s in sites}}


def own_part(clt: CrossLayerTranscoder, layer: int) -> Transcoder:
    """What latents of a layer write to that layer itself, as a transcoder."""
    skip = None if clt.W_skip is None else clt.W_skip[layer]
    given = clt.W_enc[layer], clt.b_enc[layer], clt.decoders[layer].W_dec[:, 0], clt.b_dec[layer]
    return Transcoder(*given, clt.activations[layer], clt.reads[layer], clt.sites[layer], W_skip=skip)


@ft.cache
def graph_of(name: str) -> tuple[jc.AttributionGraph, jc.Transformer, dict[Site, jc.saes.AbstractDictionary]]:
    """The whole graph of a model of the registry, of which nothing is left out, the model, and its transcoders."""
    model = model_named(name)
    transcoders = random_transcoders(jax.random.key(3), model, last=True)
    whole = {"node_threshold": 1.0, "edge_threshold": 1.0, "max_nodes": None}
    graph = jc.attribution_graph(model, transcoders, tokens_for(model, 6), targets=[1, 3], **whole)
    return graph, model, transcoders


def numbers_of(graph: jc.AttributionGraph, kind: str, *, layer: int | None = None, pos: int | None = None) -> list[int]:
    """The rows of a graph's nodes of a kind, of a layer and at a position if these are given."""
    nodes = graph.nodes
    here = nodes["kind"] == kind
    here &= True if layer is None else nodes["layer"] == layer
    here &= True if pos is None else nodes["pos"] == pos
    return [int(number) for number in nodes.index[here]]
