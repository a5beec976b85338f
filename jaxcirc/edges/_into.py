"""`edges_into`: the edges into one node, from everything upstream, by one pull through the sublayer in which it reads."""

from collections.abc import Iterable

import jax.numpy as jnp
from jax.core import Tracer

from .._metrics import Metric
from .._run import NOTHING
from .._sites import BySite, Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..nodes import Latent, Node
from ._along import edges_along
from ._dictionaries import Given
from ._into_result import EdgesInto
from ._question import ask, blanked, Question
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
      takes many nodes of a layer at once; one that is not there has no edges but NaN.
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
    return blanked(question, node, sources_of(question, target_of(node, question)))


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
    rows, gradient = target.rows, target.gradient
    found = edges_along(question, rows, gradient, [target.place] * len(rows))
    return EdgesInto(
        rows=rows,
        neurons_at_rows=jnp.stack(found.neurons),
        heads_at_rows=jnp.stack(found.heads),
        latents_at_rows=BySite(found.latents),
        errors_at_rows=BySite(found.errors),
        tokens_at_rows=found.tokens,
        positions_at_rows=found.positions,
        biases_at_rows=jnp.stack(found.biases),
        gradient_at_rows=gradient,
        activation=target.activation,
        derivative=target.derivative,
    )
