"""Gradients at what targets read, met with what was written before: the edges into many targets, layer by layer, each layer at once."""

import bisect
import functools as ft
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide
from .._sites import Kind, Site
from ..parts import Block
from ..parts._attention import grouped_scores
from ..runs import rounded_up
from ._dictionaries import read_writes, reads, writes
from ._order import Place, written_at
from ._point import Kinds, Values
from ._question import Question
from ._sublayer import AtRows, bias_behind, pull_behind, Rows


class Along(NamedTuple):
    """Edges at the rows that targets read, 0 where those are not behind: `neurons`, `heads` and `biases` by layer, others as in
    `EdgesInto`.
    """

    neurons: list[Float[Array, "row d_mlp"]]
    heads: list[Float[Array, "head row k_seq"]]
    biases: list[Float[Array, "sublayer row"]]
    latents: dict[Site, Float[Array, "row d_sae"]]
    errors: dict[Site, Float[Array, " row"]]
    tokens: Float[Array, " row"]
    positions: Float[Array, " row"]


def edges_along(question: Question, rows: Rows, gradient: AtRows, places: Sequence[Place]) -> Along:
    """Meets gradients at rows of what is read at `places`, those furthest on first, with all that was written before."""
    model, point = question.model, question.point

    def behind(site: Site) -> int:
        written = written_at(model, site)
        return bisect.bisect_left(places, True, key=lambda place: place <= written)

    neurons, heads, biases = [], [], []
    for layer, (block, values) in enumerate(zip(model.blocks, point.values, strict=True)):
        width = 0 if block.mlp is None else values[Kind.MLP_POST].shape[1]
        each, bias = [], jnp.zeros(len(rows), gradient.dtype)
        for meet, kind, shape in (
            (_of_heads, Kind.ATTN_OUT, (model.n_heads, len(rows), point.seq)),
            (_of_neurons, Kind.MLP_OUT, (len(rows), width)),
        ):
            # Of few sizes, so that layers and other nodes run the same programs.
            count = 0 if kind == Kind.MLP_OUT and block.mlp is None else behind(Site(layer, kind))
            size = min(len(rows), rounded_up(count, steps=4))
            given = (block, values, gradient, rows, count)
            nothing = jnp.zeros(shape, gradient.dtype), bias
            each.append(meet(*given, size=size, frozen=point.frozen[layer]) if count else nothing)
        (of_heads, b_O), (of_neurons, b_out) = each
        heads.append(of_heads)
        neurons.append(of_neurons)
        biases.append(jnp.stack([b_O, b_out]))
    latents, errors = {}, {}
    for site in question.dictionaries:
        latents[site], errors[site] = _of_dictionary(question, rows, gradient, behind, site)
    product = lambda x: (
        jnp.zeros(len(rows), gradient.dtype) if x is None else jnp.sum(take(x, rows) * gradient, axis=-1)
    )
    return Along(neurons, heads, biases, latents, errors, product(point.embed), product(point.positions))


@ft.partial(jax.jit, static_argnames=("size", "frozen"))
def _of_heads(
    block: Block, values: Values, gradient: AtRows, rows: Rows, count: Int[Array, ""], *, size: int, frozen: Kinds
) -> tuple[Float[Array, "head row k_seq"], Float[Array, " row"]]:
    """Edges from what each head writes, from each key, and from `b_O`, at the first `count` rows, which are among the first `size`."""
    total, rows, gradient = len(rows), rows[:size], _first(gradient[:size], count)
    before = pull_behind(block, values, gradient, rows, site=Kind.HEADS_OUT, frozen=frozen)
    # [row d_model] · [head d_head d_model] -> [row head d_head]
    read = jnp.einsum("rm,hdm->rhd", before, wide(block.attn.W_O))
    along = grouped_scores(read, values[Kind.V]) * take(values[Kind.PATTERN], rows, axis=1)
    bias = before @ wide(block.attn.b_O) + jnp.sum(gradient * bias_behind(block, Kind.HEADS_OUT), axis=-1)
    return _filled(along, total, axis=1), _filled(bias, total)


@ft.partial(jax.jit, static_argnames=("size", "frozen"))
def _of_neurons(
    block: Block, values: Values, gradient: AtRows, rows: Rows, count: Int[Array, ""], *, size: int, frozen: Kinds
) -> tuple[Float[Array, "row d_mlp"], Float[Array, " row"]]:
    """Edges from what each neuron writes, and from `b_out`, at the first `count` rows, which are among the first `size`."""
    assert block.mlp is not None
    total, rows, gradient = len(rows), rows[:size], _first(gradient[:size], count)
    before = pull_behind(block, values, gradient, rows, site=Kind.NEURONS_OUT, frozen=frozen)
    read = before @ wide(block.mlp.W_out).T
    bias = before @ wide(block.mlp.b_out) + jnp.sum(gradient * bias_behind(block, Kind.NEURONS_OUT), axis=-1)
    return _filled(read * take(values[Kind.MLP_POST], rows), total), _filled(bias, total)


def _first(gradient: AtRows, count: Int[Array, ""] | int) -> AtRows:
    """Keeps the gradients at the first rows, and makes others 0: edges are linear in them."""
    return jnp.where(jnp.arange(len(gradient))[:, None] < count, gradient, 0)


def _filled(x: Float[Array, "..."], total: int, axis: int = 0) -> Float[Array, "..."]:
    """Fills rows up by zeros."""
    return jnp.pad(x, [(0, (total - x.shape[i]) * (i == axis)) for i in range(x.ndim)])


def _of_dictionary(
    question: Question, rows: Rows, gradient: AtRows, behind: Callable[[Site], int], site: Site
) -> tuple[Float[Array, "row d_sae"], Float[Array, " row"]]:
    """Edges from what each latent of a dictionary writes, and from its error; `behind` counts the rows behind a site."""
    dictionary, acts = question.dictionaries[site], take(question.acts[site], rows)
    x, read = take(question.flat(reads(site, dictionary)), rows), jnp.zeros_like(acts)
    error = jnp.zeros_like(acts[:, 0])
    for written in writes(site, dictionary):
        if count := behind(written):
            covectors = _first(gradient, count)
            if written.layer is not None:
                here = (question.model.blocks[written.layer], question.point.values[written.layer])
                frozen = question.point.frozen[written.layer]
                covectors = pull_behind(*here, covectors, rows, site=written.kind, frozen=frozen)
            read += read_writes(site, dictionary, x, acts, covectors, written)
            error = jnp.sum(take(question.errors[site], rows) * covectors, axis=-1) if written == site else error
    return acts * read, error
