"""Sources: what a node writes to the stream, where, and what the metric makes of it."""

import functools as ft
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._precision import wide
from .._sites import Kind, layer_of, Site
from ..nodes import Bias, Error, Head, Latent, Neuron, Position, Token
from ._dictionaries import reads, write, writes
from ._order import Place, written_at
from ._question import Question
from ._sublayer import bias_behind, one_row, push_behind
from ._targets import derivative_of_latents


class Written(NamedTuple):
    """A vector `[1 d_model]` that has arrived in the stream at `place`."""

    place: Place
    vector: Float[Array, "1 d_model"]


class Source(NamedTuple):
    """What a node writes at one position: several times, if it is a latent of a cross-layer transcoder. Its activation (1 for what is a
    vector by itself), and the metric's derivative by that (0 without a metric).
    """

    row: Int[Array, ""]
    written: tuple[Written, ...]
    activation: Float[Array, ""]
    derivative: Float[Array, ""]


@ft.singledispatch
def source_of(node: Any, question: Question) -> Source:
    """What a node writes. **Raises:** `ValueError` for one that writes nothing."""
    raise ValueError(f"edges_out_of: {node} writes nothing: it is a target of edges only. See jc.edges_into.")


@source_of.register
def _(node: Neuron, question: Question) -> Source:
    site = Site(node.layer, Kind.MLP_POST)
    value = question.point.values[node.layer][Kind.MLP_POST]
    own = value[node.pos, node.index]
    vector = jnp.zeros((1, value.shape[1]), value.dtype).at[0, node.index].set(own)
    derivative = None if question.point.gradients is None else question.gradient(site)[node.pos, node.index]
    return _source(question, node.pos, [(site, vector)], own, derivative)


@source_of.register
def _(node: Head, question: Question) -> Source:
    if node.part is not None:
        raise ValueError(
            f"edges_out_of: {node}: a head writes with its query, key and value together, so that its part is None; parts are read."
        )
    values, attn = question.point.values[node.layer], question.model.blocks[node.layer].attn
    own = values[Kind.PATTERN][node.head, node.query, node.key]
    group = question.model.n_heads // question.model.n_kv_heads
    # [d_head] · [d_head d_model] -> [d_model]
    vector = own * values[Kind.V][node.key, node.head // group] @ wide(attn.W_O[node.head])
    at = (node.head, node.query, node.key)
    derivative = None if question.point.gradients is None else question.layer(node.layer).of_pattern()[at]
    return _source(question, node.query, [(Site(node.layer, Kind.HEADS_OUT), vector[None])], own, derivative)


@source_of.register
def _(node: Latent, question: Question) -> Source:
    site, dictionary = node.site, question.dictionaries[node.site]
    row = jnp.asarray(node.pos)
    x, own = one_row(question.flat(reads(site, dictionary)), row), question.acts[site][node.pos, node.index]
    vectors = [(each, own * write(site, dictionary, x, node.index, each)) for each in writes(site, dictionary)]
    known = question.point.gradients is not None
    derivative = derivative_of_latents(question, site, row[None])[0, node.index] if known else None
    return _source(question, node.pos, vectors, own, derivative)


@source_of.register
def _(node: Error, question: Question) -> Source:
    vector = one_row(question.errors[node.site], jnp.asarray(node.pos))
    known = question.point.gradients is not None
    derivative = jnp.vdot(question.gradient(node.site)[node.pos], vector) if known else None
    return _source(question, node.pos, [(node.site, vector)], jnp.ones((), vector.dtype), derivative)


@source_of.register
def _(node: Token, question: Question) -> Source:
    return _of_embedding(question, node.pos, question.point.embed)


@source_of.register
def _(node: Position, question: Question) -> Source:
    assert question.point.positions is not None
    return _of_embedding(question, node.pos, question.point.positions)


@source_of.register
def _(node: Bias, question: Question) -> Source:
    layer, row = layer_of(node.site), jnp.asarray(node.pos)[None]
    block, values, frozen = question.model.blocks[layer], question.point.values[layer], question.point.frozen[layer]
    attends = node.site.kind == Kind.ATTN_OUT
    bias = wide(block.attn.b_O if attends or block.mlp is None else block.mlp.b_out)
    kind = Kind.HEADS_OUT if attends else Kind.NEURONS_OUT
    vector = push_behind(block, values, bias[None], row, site=kind, frozen=frozen) + bias_behind(block, kind)
    gradient = None if question.point.gradients is None else question.gradient(node.site)[node.pos]
    derivative = None if gradient is None else jnp.vdot(gradient, vector)
    place = written_at(question.model, node.site)
    return _at(node.pos, (Written(place, vector),), jnp.ones((), bias.dtype), derivative)


def _of_embedding(question: Question, pos, values: Float[Array, "seq d_model"]) -> Source:
    row = one_row(values, jnp.asarray(pos))
    gradient = question.point.embed_gradient
    derivative = None if gradient is None else jnp.vdot(gradient[pos], row)
    place = written_at(question.model, Site(None, Kind.EMBED))
    return _at(pos, (Written(place, row),), jnp.ones((), row.dtype), derivative)


def _source(question: Question, pos, vectors: list[tuple[Site, Array]], activation, derivative) -> Source:
    """Takes vectors of sites' values to the stream."""
    row, written = jnp.asarray(pos)[None], []
    for site, vector in vectors:
        if site.layer is not None:
            block, values = question.model.blocks[site.layer], question.point.values[site.layer]
            frozen = question.point.frozen[site.layer]
            vector = push_behind(block, values, vector, row, site=site.kind, frozen=frozen)
        written.append(Written(written_at(question.model, site), vector))
    return _at(pos, tuple(written), activation, derivative)


def _at(pos, written: tuple[Written, ...], activation, derivative) -> Source:
    nothing = jnp.zeros_like(activation)
    return Source(jnp.asarray(pos), written, activation, nothing if derivative is None else derivative)
