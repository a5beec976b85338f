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
from ._order import end, in_mlp, Place, read_at, RESIDUAL
from ._out_result import EdgesOutOf
from ._question import ask, Question
from ._sources import Source, source_of
from ._sublayer import one_row, push
from ._targets import derivative_of_latents, derivative_of_pattern, derivative_of_scores, stream_of


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
        "edges_out_of", model, tokens, metric, node, saes=saes, frozen=frozen, activation=activation, mask=mask
    )
    return targets_of(question, source_of(node, question))


def targets_of(question: Question, source: Source) -> EdgesOutOf:
    """Pushes what a source writes through every sublayer that reads it."""
    model, point = question.model, question.point
    neurons, heads = [], {"q": [], "k": [], "v": []}
    for layer, block in enumerate(model.blocks):
        width = 0 if block.mlp is None else point.values[layer][Kind.MLP_POST].shape[1]
        arrived = None if block.mlp is None else _arrived(source, read_at(model, Site(layer, Kind.MLP_POST)))
        nothing = jnp.zeros(width, point.last.dtype)
        neurons.append(nothing if arrived is None else _into_neurons(question, source, layer, arrived))
        arrived = _arrived(source, read_at(model, Site(layer, Kind.Z)))
        for part, edges in heads.items():
            if part != "v" or point.gradients is not None:
                nothing = jnp.zeros_like(point.values[layer][Kind.PATTERN])
                edges.append(nothing if arrived is None else _into_heads(question, source, layer, part, arrived))
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


def _into_neurons(
    question: Question, source: Source, layer: int, arrived: Float[Array, "1 d_model"]
) -> Float[Array, " d_mlp"]:
    kind = Kind.MLP_POST if question.activation == "post" else Kind.MLP_PRE
    moved = _moved(question, source, Site(layer, kind), arrived)[0]
    known = question.point.gradients is not None
    return moved * question.gradient(Site(layer, kind))[source.row] if known else moved


_STOPPED = {"q": frozenset({Kind.K, Kind.V}), "k": frozenset({Kind.Q, Kind.V}), "v": frozenset()}


def _into_heads(
    question: Question, source: Source, layer: int, part: str, arrived: Float[Array, "1 d_model"]
) -> Float[Array, "head q_seq k_seq"]:
    """Edges into all pairs of positions of a layer's heads, through one of their parts."""
    scores, known = question.activation == "pre", question.point.gradients is not None
    kind = Kind.V if part == "v" else Kind.ATTN_SCORES if scores else Kind.PATTERN
    moved = _moved(question, source, Site(layer, kind), arrived, _STOPPED[part])
    if part == "v":
        values, group = question.point.values[layer], question.model.n_heads // question.model.n_kv_heads
        assert question.point.gradients is not None
        gradient = question.point.gradients[layer][Kind.Z]
        # [q_seq head d_head] · [k_seq head d_head] -> [head q_seq k_seq]
        along = jnp.einsum("qhd,khd->hqk", gradient, jnp.repeat(moved, group, axis=1))
        return along * values[Kind.PATTERN]
    moved = jnp.where(jnp.isfinite(moved), moved, 0)
    if not known:
        return moved
    return moved * (derivative_of_scores if scores else derivative_of_pattern)(question, layer)


def _into_latents(question: Question, source: Source, site: Site) -> Float[Array, "seq d_sae"]:
    """Edges into the latents of a dictionary."""
    dictionary, acts = question.dictionaries[site], question.acts[site]
    read, everything = reads(site, dictionary), jnp.arange(len(acts), dtype=jnp.int32)
    if read.layer is None or (arrived := _arrived(source, read_at(question.model, read))) is None:
        return jnp.zeros_like(acts)
    moved = arrived if read.kind in RESIDUAL else _moved(question, source, read, arrived)
    rows = everything if len(moved) > 1 else source.row[None]
    x = question.flat(read)[rows]
    edges = encode_tangent(site, dictionary, x, moved.reshape(len(rows), -1))
    if question.activation == "post" or question.point.gradients is not None:
        edges = edges * slopes(site, dictionary, x)
    edges = edges * derivative_of_latents(question, site, rows)
    return jnp.zeros_like(acts).at[rows].set(edges)


def _moved(
    question: Question,
    source: Source,
    site: Site,
    arrived: Float[Array, "1 d_model"],
    stopped: frozenset[Kind] = frozenset(),
) -> Float[Array, "..."]:
    """How the value at a site moves: of an MLP's sites the one position, of attention's all."""
    layer = layer_of(site)
    block, resid, frozen = question.model.blocks[layer], stream_of(question, site), question.point.frozen[layer]
    if in_mlp(site.kind):
        alone = (jnp.ones((1, 1), bool), one_row(resid, source.row))
        return push(block, *alone, arrived, site=site.kind, frozen=frozen)
    tangent = jnp.zeros_like(resid).at[source.row].set(arrived[0])
    return push(block, question.point.masks[layer], resid, tangent, site=site.kind, frozen=frozen | stopped)
