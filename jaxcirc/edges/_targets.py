"""Targets: how a node reads the stream. Of each the derivative by the stream in front of it, at the rows that it reads."""

import functools as ft
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._indexing import take
from .._sites import Kind, layer_of, Site
from ..nodes import Direction, Final, Head, Index, Latent, Neuron
from ..parts._attention import grouped_scores
from ._dictionaries import covector, read_writes, reads, slopes, writes
from ._order import end, in_mlp, Place, read_at, RESIDUAL
from ._question import Question
from ._sublayer import AtRows, one_row, pull, Rows


class Target(NamedTuple):
    """What reads the stream at `place`: its gradient by the stream, at `rows`, all others being 0; its activation; and the metric's
    derivative by that, which is in the gradient (1 without a metric).
    """

    place: Place
    rows: Rows
    gradient: AtRows
    activation: Float[Array, ""]
    derivative: Float[Array, ""]


@ft.singledispatch
def target_of(node: Any, question: Question) -> Target:
    """How a node reads the stream. **Raises:** `ValueError` for one that reads nothing."""
    raise ValueError(f"edges_into: {node} reads nothing: it is a source of edges only. See jc.edges_out_of.")


@target_of.register
def _(node: Neuron, question: Question) -> Target:
    kind = Kind.MLP_POST if question.activation == "post" else Kind.MLP_PRE
    derivative = _derivative(question, Site(node.layer, kind), node.pos, node.index)
    value = question.point.values[node.layer][Kind.MLP_POST]
    unit = jnp.zeros((1, value.shape[1]), value.dtype).at[0, node.index].set(derivative)
    own = question.point.values[node.layer][Kind.MLP_POST][node.pos, node.index]
    own_derivative = _derivative(question, Site(node.layer, Kind.MLP_POST), node.pos, node.index)
    return _at_one(question, Site(node.layer, kind), node.pos, unit, own, own_derivative)


@target_of.register
def _(node: Latent, question: Question) -> Target:
    site, dictionary = node.site, question.dictionaries[node.site]
    read = reads(site, dictionary)
    if read.layer is None:
        raise ValueError(
            f"edges_into: the latents at `{site}` read the embeddings themselves, which nothing is upstream of."
        )
    x = one_row(question.flat(read), jnp.asarray(node.pos))
    slope = slopes(site, dictionary, x)[0, node.index]
    own = question.acts[site][node.pos, node.index]
    derivative = derivative_of_latents(question, site, jnp.asarray(node.pos)[None])[0, node.index]
    bare = question.activation == "pre" and question.point.gradients is None
    factor = derivative * (1 if bare else slope)
    here = factor * covector(site, dictionary, x, node.index)
    if read.kind in RESIDUAL:
        return Target(read_at(question.model, read), jnp.asarray(node.pos)[None], here, own, derivative)
    if in_mlp(read.kind):
        return _at_one(question, read, node.pos, here, own, derivative)
    value = question.point.values[layer_of(read)][read.kind]
    spread = jnp.zeros_like(value).at[node.pos].set(here.reshape(value.shape[1:]))
    return _everywhere(question, read, spread, frozenset(), own, derivative)


@target_of.register
def _(node: Head, question: Question) -> Target:
    layer, at = node.layer, (node.head, node.query, node.key)
    values = question.point.values[layer]
    own, derivative = values[Kind.PATTERN][at], jnp.ones((), values[Kind.PATTERN].dtype)
    scores = question.activation == "pre"
    if question.point.gradients is not None:
        derivative = derivative_of_pattern(question, layer)[at]
    elif node.part in (None, "v"):
        raise ValueError(
            "edges_into: without a metric an edge into a head's value has no size: what passes is a vector. Give a metric, or part='q', "
            "'k' or 'qk'."
        )
    found = []
    if node.part in (None, "q", "k", "qk"):
        kind = Kind.ATTN_SCORES if scores else Kind.PATTERN
        factor = (
            derivative if not scores or question.point.gradients is None else derivative_of_scores(question, layer)[at]
        )
        unit = jnp.zeros_like(values[Kind.PATTERN]).at[at].set(factor)
        stopped = {"q": {Kind.K, Kind.V}, "k": {Kind.Q, Kind.V}}.get(node.part or "", {Kind.V})
        found.append(_everywhere(question, Site(layer, kind), unit, frozenset(stopped), own, derivative))
    if node.part in (None, "v"):
        v = values[Kind.V]
        group = question.model.n_heads // question.model.n_kv_heads
        passed = values[Kind.PATTERN][at] * _gradient(question, layer, Kind.Z)[node.query, node.head]
        unit = jnp.zeros_like(v).at[node.key, node.head // group].set(passed)
        found.append(_everywhere(question, Site(layer, Kind.V), unit, frozenset(), own, derivative))
    gradient = ft.reduce(jnp.add, (each.gradient for each in found))
    row = _row_read(node, question)
    if row is None:
        return found[0]._replace(gradient=gradient)
    return found[0]._replace(rows=jnp.asarray(row)[None], gradient=one_row(gradient, jnp.asarray(row)))


def _row_read(node: Head, question: Question) -> Index | None:
    """The one position that a part of a head reads; `None` where it may read several: the softmax compares a key with all others."""
    if node.part == "q":
        return node.query
    return node.key if node.part == "v" or (node.part == "k" and question.activation == "pre") else None


@target_of.register
def _(node: Direction, question: Question) -> Target:
    place, row = read_at(question.model, node.site), jnp.asarray(node.pos)[None]
    layer = layer_of(node.site)
    vector = jnp.asarray(node.vector, question.point.last.dtype)
    if node.site == Site(question.model.n_layers - 1, Kind.RESID_POST):
        value = question.point.last[node.pos]
    else:
        at = (layer, node.site.kind) if node.site.kind != Kind.RESID_POST else (layer + 1, Kind.RESID_PRE)
        value = question.point.values[at[0]][at[1]][node.pos]
    # [d_model] · [d_model] -> []
    return Target(place, row, vector[None], jnp.vdot(value, vector), jnp.ones((), vector.dtype))


@target_of.register
def _(node: Final, question: Question) -> Target:
    gradient = question.point.last_gradient
    if gradient is None:
        raise ValueError("edges_into: jc.Final() is read along the metric's gradient, and no metric was given.")
    rows = jnp.arange(question.point.seq, dtype=jnp.int32)
    total = jnp.vdot(gradient, question.point.last)
    return Target(end(question.model), rows, gradient, total, jnp.ones((), gradient.dtype))


def _at_one(question: Question, site: Site, pos, covectors, activation, derivative) -> Target:
    """Pulls a covector at one position back through a sublayer that works on each position by itself."""
    layer = layer_of(site)
    block, resid = question.model.blocks[layer], stream_of(question, site)
    row, alone = one_row(resid, jnp.asarray(pos)), jnp.ones((1, 1), bool)
    gradient = pull(block, alone, row, covectors, site=site.kind, frozen=question.point.frozen[layer])
    return Target(read_at(question.model, site), jnp.asarray(pos)[None], gradient, activation, derivative)


def _everywhere(question: Question, site: Site, covectors, stopped, activation, derivative) -> Target:
    """Pulls covectors back through attention."""
    layer, point = layer_of(site), question.point
    frozen = point.frozen[layer] | stopped
    gradient = pull(
        question.model.blocks[layer],
        point.masks[layer],
        stream_of(question, site),
        covectors,
        site=site.kind,
        frozen=frozen,
    )
    rows = jnp.arange(point.seq, dtype=jnp.int32)
    return Target(read_at(question.model, site), rows, gradient, activation, derivative)


def stream_of(question: Question, site: Site) -> Float[Array, "seq d_model"]:
    """The stream that the sublayer of a site reads."""
    from_middle = in_mlp(site.kind) and question.model.blocks[layer_of(site)].has_middle
    return question.point.values[layer_of(site)][Kind.RESID_MID if from_middle else Kind.RESID_PRE]


def _gradient(question: Question, layer: int, kind: Kind) -> Float[Array, "..."]:
    assert question.point.gradients is not None
    return question.point.gradients[layer][kind]


def _derivative(question: Question, site: Site, pos, index) -> Float[Array, ""]:
    """The metric's derivative by one number at a site; 1 without a metric."""
    if question.point.gradients is None:
        return jnp.ones((), question.point.last.dtype)
    return question.gradient(site)[pos, index]


def derivative_of_pattern(question: Question, layer: int) -> Float[Array, "head q_seq k_seq"]:
    """The metric's derivative by each probability, whether patterns are held or not: what is read there, along the gradient at `z`."""
    return grouped_scores(_gradient(question, layer, Kind.Z), question.point.values[layer][Kind.V])


def derivative_of_scores(question: Question, layer: int) -> Float[Array, "head q_seq k_seq"]:
    """The same by each score: back through the softmax, unless patterns are held."""
    if Kind.PATTERN in question.point.frozen[layer]:
        return jnp.zeros_like(question.point.values[layer][Kind.PATTERN])
    pattern, gradient = question.point.values[layer][Kind.PATTERN], derivative_of_pattern(question, layer)
    # [head q_seq k_seq] · [head q_seq k_seq] -> [head q_seq 1]
    return pattern * (gradient - jnp.sum(pattern * gradient, axis=-1, keepdims=True))


def derivative_of_latents(question: Question, site: Site, rows: Rows) -> Float[Array, "row d_sae"]:
    """The metric's derivative by each latent at some rows: its writing directions along the gradients; 1 without a metric."""
    dictionary, acts = question.dictionaries[site], take(question.acts[site], rows)
    if question.point.gradients is None:
        return jnp.ones_like(acts)
    x, total = take(question.flat(reads(site, dictionary)), rows), jnp.zeros_like(acts)
    for target in writes(site, dictionary):
        total += read_writes(site, dictionary, x, acts, take(question.gradient(target), rows), target)
    return total
