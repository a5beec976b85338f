"""`edges_out_of`: the edges out of one node, into everything downstream, by one push through each later sublayer."""

from collections.abc import Iterable

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._metrics import Metric
from .._run import NOTHING
from .._sites import BySite, Kind, layer_of, Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..nodes import Node
from ._dictionaries import encode_tangent, Given, reads, slopes
from ._layer import move_heads, move_neurons
from ._order import end, Place, read_at, RESIDUAL
from ._out_result import EdgesOutOf
from ._question import ask, blanked, Question
from ._sources import Source, source_of
from ._targets import derivative_of_latents


def edges_out_of(
    model: Transformer,
    tokens: Tokens,
    metric: Metric | None,
    node: Node,
    *,
    saes: Given = NOTHING,
    frozen: Iterable[Site | str] = (),
    activation: str = "post",
    mask: Keys | None = None,
) -> EdgesOutOf:
    r"""The direct edges out of one node into everything downstream of it, at one prompt.

    What the node writes is pushed, as a tangent, through each later sublayer by itself. An edge is the number that `jc.edges_into` gives
    for the same two nodes:

    $$e(u \to d) = \Big\langle \frac{\partial a_d}{\partial r},\; w_u \Big\rangle \cdot \frac{\partial m}{\partial a_d}.$$

    **Arguments:** - `node`: `jc.Neuron`, `jc.Latent`, `jc.Error`, `jc.Head` without a part, `jc.Token`, `jc.Position` or `jc.Bias`. - the
    rest as in `jc.edges_into`.

    **Returns:** `EdgesOutOf`. The edges into neurons, q, k, v and the last stream sum to the node's `attribution`, exactly.

    **Raises:** as `jc.edges_into`.

    >>> edges = jc.edges_out_of(model, tokens, jc.LogitDiff(5, 7), jc.Neuron(1, 4, 130))
    >>> bool(jnp.allclose(edges.total, edges.attribution, atol=1e-4))
    True

    **Reference:** as `jc.edges_into`.
    """
    question = ask(
        "edges_out_of", model, tokens, metric, [node], saes=saes, frozen=frozen, activation=activation, mask=mask
    )
    return blanked(question, node, targets_of(question, source_of(node, question)))


def targets_of(question: Question, source: Source) -> EdgesOutOf:
    """Pushes what a source writes through every sublayer that reads it."""
    model, point = question.model, question.point
    neurons, heads = [], {"q": [], "k": [], "v": []}
    for layer, block in enumerate(model.blocks):
        width = 0 if block.mlp is None else point.values[layer][Kind.MLP_POST].shape[1]
        arrived = None if block.mlp is None else _arrived(source, read_at(model, Site(layer, Kind.MLP_POST)))
        nothing = jnp.zeros(width, point.last.dtype)
        here = question.layer(layer)
        neurons.append(nothing if arrived is None else move_neurons(here, source.row, arrived))
        arrived = _arrived(source, read_at(model, Site(layer, Kind.Z)))
        for part, edges in heads.items():
            if part != "v" or point.gradients is not None:
                nothing = jnp.zeros_like(point.values[layer][Kind.PATTERN])
                edges.append(nothing if arrived is None else move_heads(here, source.row, arrived, part=part))
    last, gradient = _arrived(source, end(model)), point.last_gradient
    assert last is not None
    return EdgesOutOf(
        row=source.row,
        neurons_at_row=jnp.stack(neurons),
        q=jnp.stack(heads["q"]),
        k=jnp.stack(heads["k"]),
        values=None if point.gradients is None else jnp.stack(heads["v"]),
        latents=BySite((site, _into_latents(question, source, site)) for site in question.dictionaries),
        final=jnp.zeros((), last.dtype) if gradient is None else jnp.vdot(last[0], gradient[source.row]),
        activation=source.activation,
        derivative=source.derivative,
    )


def _arrived(source: Source, place: Place) -> Float[Array, "1 d_model"] | None:
    """What of a source is in the stream at a place; `None` where nothing has arrived."""
    vectors = [each.vector for each in source.written if each.place < place]
    return sum(vectors[1:], vectors[0]) if vectors else None


def _into_latents(question: Question, source: Source, site: Site) -> Float[Array, "seq d_sae"]:
    """Edges into the latents of a dictionary."""
    dictionary, acts = question.dictionaries[site], question.acts[site]
    read, everything = reads(site, dictionary), jnp.arange(len(acts), dtype=jnp.int32)
    if read.layer is None or (arrived := _arrived(source, read_at(question.model, read))) is None:
        return jnp.zeros_like(acts)
    moved = arrived if read.kind in RESIDUAL else question.layer(layer_of(read)).push(read.kind, source.row, arrived)
    rows = everything if len(moved) > 1 else source.row[None]
    x = question.flat(read)[rows]
    edges = encode_tangent(site, dictionary, x, moved.reshape(len(rows), -1))
    if question.activation == "post" or question.point.gradients is not None:
        edges = edges * slopes(site, dictionary, x)
    edges = edges * derivative_of_latents(question, site, rows)
    return jnp.zeros_like(acts).at[rows].set(edges)
