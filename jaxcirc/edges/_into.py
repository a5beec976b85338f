"""`edges_into`: the edges into one node, from everything upstream, by one pull through the sublayer in which it reads."""

import functools as ft
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from .._indexing import take
from .._metrics import Metric
from .._precision import wide
from .._run import NOTHING
from .._sites import BySite, Kind, Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..nodes import Latent, Node
from ..parts import Block
from ..parts._attention import grouped_scores
from ._dictionaries import Given, read_writes, reads, writes
from ._into_result import EdgesInto
from ._order import written_at
from ._point import Kinds, Values
from ._question import ask, Question
from ._sublayer import AtRows, bias_behind, pull_behind, Rows
from ._targets import Target, target_of


def edges_into(
    model: Transformer,
    tokens: Tokens,
    metric: Metric | None,
    node: Node,
    *,
    saes: Given = NOTHING,
    frozen: Iterable[Site | str] = (),
    activation: str = "post",
    mask: Keys | None = None,
) -> EdgesInto:
    r"""The direct edges into one node from everything upstream of it, at one prompt.

    Nodes write to the residual stream and read from it. The edge from $u$, which writes $w_u$ `[seq d_model]`, to $d$ is what of the
    metric's linear effect of $u$ passes through $d$ next:

    $$e(u \to d) = \Big\langle w_u,\; \frac{\partial a_d}{\partial r} \Big\rangle \cdot \frac{\partial m}{\partial a_d},$$

    with the stream $r$ that the sublayer of $d$ reads and the activation $a_d$. It is a gradient times an activation, along the stream
    alone: through no other sublayer. `jc.edges_out_of` gives the same numbers, all those out of one node.

    Of all edges of a node $u$ together $a_u\,\partial m / \partial a_u = \langle w_u, g \rangle + \sum_d e(u \to d)$, over the neurons and
    the heads' q, k and v downstream, with the metric's gradient $g$ at the last stream: exactly, whatever is frozen.

    Shares of a target's edges mean something only where norms' scales are held, `frozen=jc.frozen.layer_norms(model)`: a live norm
    does not change when all that it reads is scaled, so that the edges into a node behind it sum to about 0.

    **Arguments:**

    - `metric`: of one prompt's logits; `None` leaves out the factor $\partial m / \partial a_d$: how much of the activation itself comes
      from each node, to first order.
    - `node`: `jc.Neuron`, `jc.Latent`, `jc.Head` with its part, `jc.Direction`, or `jc.Final()` for direct effects on the metric. Its
      positions and units may be traced under `jax.jit` and `jax.vmap`, so that `jax.vmap(lambda i: jc.edges_into(…, jc.Neuron(3, 5, i)))`
      takes many nodes of a layer at once.
    - `saes`: dictionaries, by site: their latents and errors become nodes. That changes no derivative. A cross-layer transcoder is given
      at all its sites, `{site: clt for site in clt.sites}`.
    - `frozen`: what is held, in the metric's gradient and in the edges alike: norms' scales, patterns, gates, scores, queries, keys,
      values.
    - `activation`: `"post"`, or `"pre"` for neurons before their activation function (of a gated MLP: its gate), latents before theirs,
      and scores in place of patterns.
    - `mask` `[seq]`: False for padding.

    **Returns:** `EdgesInto`.

    **Raises:** `ValueError` for a node that the model does not have, or that is not causal, a latent that is off, so that all its edges are
    0, a source of edges only, sites that cannot be held; `TypeError` for what is no node.

    >>> edges = jc.edges_into(model, tokens, jc.LogitDiff(5, 7), jc.Neuron(2, 4, 130), frozen=jc.frozen.layer_norms(model))
    >>> edges.heads.shape, edges.tokens.shape
    ((4, 4, 6, 6), (6,))

    **Reference:** transformer-debugger (OpenAI 2024), whose edge attribution this is, with two differences: `frozen` holds in the gradient
    and in the edge, where there two settings differ by default, and break the sums; and biases and positions are nodes, so that edges
    sum to the whole.
    """
    question = ask(
        "edges_into", model, tokens, metric, [node], saes=saes, frozen=frozen, activation=activation, mask=mask
    )
    check_on(question, node)
    return sources_of(question, target_of(node, question))


def check_on(question: Question, node: Node) -> None:
    """ValueError for a latent that is off, where that is known."""
    if not isinstance(node, Latent) or question.activation == "pre":
        return
    acts = question.acts[node.site]
    if any(isinstance(each, Tracer) for each in (acts, node.pos, node.index)):
        return
    if acts[node.pos, node.index] == 0:
        raise ValueError(
            f"edges_into: latent {int(node.index)} of `{node.site}` is off at position {int(node.pos)}, so its slope, and with it every "
            "edge into it, is 0. Take one that is on, or read it before its activation function: activation='pre', metric=None."
        )


def sources_of(question: Question, target: Target) -> EdgesInto:
    """Meets the gradient at what a target reads with all that was written before."""
    model, point, before = question.model, question.point, lambda site: written_at(question.model, site) < target.place
    rows, gradient = target.rows, target.gradient
    neurons, heads, biases = [], [], []
    for layer, (block, values) in enumerate(zip(model.blocks, point.values, strict=True)):
        frozen, nothing = point.frozen[layer], jnp.zeros(len(rows), gradient.dtype)
        attends = before(Site(layer, Kind.ATTN_OUT))
        found = _of_heads(block, values, gradient, rows, frozen=frozen) if attends else None
        shape = (model.n_heads, len(rows), point.seq)
        heads.append(jnp.zeros(shape, gradient.dtype) if found is None else found[0])
        feeds = block.mlp is not None and before(Site(layer, Kind.MLP_OUT))
        fed = _of_neurons(block, values, gradient, rows, frozen=frozen) if feeds else None
        width = 0 if block.mlp is None else values[Kind.MLP_POST].shape[1]
        neurons.append(jnp.zeros((len(rows), width), gradient.dtype) if fed is None else fed[0])
        biases.append(jnp.stack([nothing if each is None else each[1] for each in (found, fed)]))
    latents, errors = {}, {}
    for site in question.dictionaries:
        latents[site], errors[site] = _of_dictionary(question, target, site)
    product = lambda x: (
        jnp.zeros(len(rows), gradient.dtype) if x is None else jnp.sum(take(x, rows) * gradient, axis=-1)
    )
    return EdgesInto(
        rows=rows,
        neurons_at_rows=jnp.stack(neurons),
        heads_at_rows=jnp.stack(heads),
        latents_at_rows=BySite(latents),
        errors_at_rows=BySite(errors),
        tokens_at_rows=product(point.embed),
        positions_at_rows=product(point.positions),
        biases_at_rows=jnp.stack(biases),
        gradient_at_rows=gradient,
        activation=target.activation,
        derivative=target.derivative,
    )


@ft.partial(jax.jit, static_argnames="frozen")
def _of_heads(
    block: Block, values: Values, gradient: AtRows, rows: Rows, *, frozen: Kinds
) -> tuple[Float[Array, "head row k_seq"], Float[Array, " row"]]:
    """Edges from what each head writes at rows, from each key, and from `b_O`."""
    before = pull_behind(block, values, gradient, rows, site=Kind.HEADS_OUT, frozen=frozen)
    # [row d_model] · [head d_head d_model] -> [row head d_head]
    read = jnp.einsum("rm,hdm->rhd", before, wide(block.attn.W_O))
    along = grouped_scores(read, values[Kind.V])
    bias = before @ wide(block.attn.b_O) + jnp.sum(gradient * bias_behind(block, Kind.HEADS_OUT), axis=-1)
    return along * take(values[Kind.PATTERN], rows, axis=1), bias


@ft.partial(jax.jit, static_argnames="frozen")
def _of_neurons(
    block: Block, values: Values, gradient: AtRows, rows: Rows, *, frozen: Kinds
) -> tuple[Float[Array, "row d_mlp"], Float[Array, " row"]]:
    """Edges from what each neuron writes at rows, and from `b_out`."""
    assert block.mlp is not None
    before = pull_behind(block, values, gradient, rows, site=Kind.NEURONS_OUT, frozen=frozen)
    read = before @ wide(block.mlp.W_out).T
    bias = before @ wide(block.mlp.b_out) + jnp.sum(gradient * bias_behind(block, Kind.NEURONS_OUT), axis=-1)
    return read * take(values[Kind.MLP_POST], rows), bias


def _of_dictionary(
    question: Question, target: Target, site: Site
) -> tuple[Float[Array, "row d_sae"], Float[Array, " row"]]:
    """Edges from what each latent of a dictionary writes, and from its error."""
    dictionary, model = question.dictionaries[site], question.model
    rows, acts = target.rows, take(question.acts[site], target.rows)
    x, read, error = (
        take(question.flat(reads(site, dictionary)), rows),
        jnp.zeros_like(acts),
        jnp.zeros_like(acts[:, 0]),
    )
    for written in writes(site, dictionary):
        if written_at(model, written) < target.place:
            covectors = target.gradient
            if written.layer is not None:
                here = (model.blocks[written.layer], question.point.values[written.layer])
                frozen = question.point.frozen[written.layer]
                covectors = pull_behind(*here, target.gradient, rows, site=written.kind, frozen=frozen)
            read += read_writes(site, dictionary, x, acts, covectors, written)
            error = jnp.sum(take(question.errors[site], rows) * covectors, axis=-1) if written == site else error
    return acts * read, error
