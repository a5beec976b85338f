"""Targets: how a node reads the stream. Of each the derivative by the stream in front of it, at the rows that it reads."""

import functools as ft
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._indexing import take
from .._sites import Kind, layer_of, Site
from ..nodes import Direction, Final, Head, Index, Latent, Neuron
from ._dictionaries import covector, read_writes, reads, slopes, writes
from ._layer import read_head, read_neuron
from ._order import end, in_mlp, Place, read_at, RESIDUAL
from ._question import Question
from ._sublayer import AtRows, one_row, Rows


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
    place = read_at(question.model, Site(node.layer, Kind.MLP_POST))
    return Target(place, _row(node.pos), *read_neuron(question.layer(node.layer), node.pos, node.index))


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
        return Target(read_at(question.model, read), _row(node.pos), here, own, derivative)
    layer, place = question.layer(layer_of(read)), read_at(question.model, read)
    value = layer.values[read.kind]
    here = here.reshape(1, *value.shape[1:])
    if in_mlp(read.kind):
        return Target(place, _row(node.pos), layer.pull_at(read.kind, node.pos, here), own, derivative)
    gradient = layer.pull(read.kind, jnp.zeros_like(value).at[node.pos].set(here[0]))
    return Target(place, _all_rows(question), gradient, own, derivative)


@target_of.register
def _(node: Head, question: Question) -> Target:
    parts = ("qk", "v") if node.part is None else (node.part,)
    if question.point.gradients is None and "v" in parts:
        raise ValueError(
            "edges_into: without a metric an edge into a head's value has no size: what passes is a vector. Give a metric, or part='q', "
            "'k' or 'qk'."
        )
    at, place = (node.head, node.query, node.key), read_at(question.model, Site(node.layer, Kind.Z))
    layer = question.layer(node.layer)
    gradient, *about = read_head(layer, *at, part=parts[0])
    if node.part is None:  # beside what query and key read at many positions, what the value reads at one
        gradient = gradient.at[node.key].add(read_head(layer, *at, part="v")[0][0])
    row = None if node.part is None else layer.row_read(node.part, node.query, node.key)
    return Target(place, _all_rows(question) if row is None else _row(row), gradient, *about)


@target_of.register
def _(node: Direction, question: Question) -> Target:
    place, row = read_at(question.model, node.site), _row(node.pos)
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
        raise ValueError(
            "edges_into: the last stream is read along the metric's gradient, and no metric was given. Give one."
        )
    total = jnp.vdot(gradient, question.point.last)
    return Target(end(question.model), _all_rows(question), gradient, total, jnp.ones((), gradient.dtype))


def _row(pos: Index) -> Rows:
    return jnp.asarray(pos, jnp.int32)[None]


def _all_rows(question: Question) -> Rows:
    return jnp.arange(question.point.seq, dtype=jnp.int32)


def derivative_of_latents(question: Question, site: Site, rows: Rows) -> Float[Array, "row d_sae"]:
    """The metric's derivative by each latent at some rows: its writing directions along the gradients; 1 without a metric."""
    dictionary, acts = question.dictionaries[site], take(question.acts[site], rows)
    if question.point.gradients is None:
        return jnp.ones_like(acts)
    x, total = take(question.flat(reads(site, dictionary)), rows), jnp.zeros_like(acts)
    for target in writes(site, dictionary):
        total += read_writes(site, dictionary, x, acts, take(question.gradient(target), rows), target)
    return total
