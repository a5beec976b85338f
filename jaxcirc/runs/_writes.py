"""What each sender of a component graph adds to the residual stream, so that the sum of all, with the biases, is the stream."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._precision import wide
from .._sites import Kind, Site
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Block, LayerNorm, Norm
from ..parts._held_norm import push_through_norm
from ._recorded import record, Recorded


EMBEDDED = (Kind.EMBED, Kind.POS_EMBED)


def kinds_written(block: Block) -> tuple[Kind, ...]:
    """The sites of a block of which its senders are made: those of attention, then those of the MLP."""
    there = {
        Kind.RESULT: block.attn,
        Kind.LN1_POST_SCALE: block.ln1_post,
        Kind.MLP_OUT: block.mlp,
        Kind.LN2_POST_SCALE: block.ln2_post,
    }
    return tuple(kind for kind, part in there.items() if part is not None)


def attention_writes(
    graph: ComponentGraph, block: Block, values: Mapping[Kind, Float[Array, "..."]]
) -> Float[Array, "sender seq d_model"]:
    r"""What each head of a block writes; behind them the bias, if it is a sender.

    Behind a norm with scale $s$ that is what it makes of the head's own output at the scale of this run: the norm's weight times
    $W_O^h z^h / s$, centred where it centres. There a bias that is no sender is shared out among the heads, as it varies with the scale.
    """
    heads, bias, norm = jnp.swapaxes(values[Kind.RESULT], 0, 1), wide(block.attn.b_O), block.ln1_post
    if norm is not None:
        scale = values[Kind.LN1_POST_SCALE]
        heads = push_through_norm(norm, heads if graph.biases else heads + bias / len(heads)) / scale
        bias = push_through_norm(norm, bias) / scale + _bias(norm)
    if not graph.biases:
        return heads
    return jnp.concatenate([heads, jnp.broadcast_to(bias, (1, *heads.shape[1:]))])


def mlp_writes(
    graph: ComponentGraph, block: Block, values: Mapping[Kind, Float[Array, "..."]]
) -> Float[Array, "sender seq d_model"]:
    """What the MLP of a block writes without its bias; behind it the bias, if it is a sender."""
    out, norm = values[Kind.MLP_OUT], block.ln2_post
    inner = getattr(block.mlp, "b_out", None)  # an MLP of another class keeps what it may have
    bias = jnp.zeros_like(out[0]) if inner is None else wide(inner)
    if norm is not None:
        varies = push_through_norm(norm, bias) / values[Kind.LN2_POST_SCALE] if graph.biases else 0
        bias = varies + _bias(norm)
    bias = jnp.broadcast_to(bias, out.shape)
    return jnp.stack([out - bias, bias]) if graph.biases else (out - bias)[None]


def embedding_writes(
    graph: ComponentGraph, values: Mapping[Kind, Float[Array, "*batch seq d_model"]]
) -> Float[Array, "*batch sender seq d_model"]:
    """What the embeddings that are senders write."""
    parts = [values[kind] for kind in EMBEDDED if kind in values]
    if graph.embeddings == "joint":
        parts = [sum(parts[1:], parts[0])]
    return jnp.stack(parts[: 1 if graph.embeddings == "tokens" else None], axis=-3)


def sender_writes(
    model: Transformer,
    graph: ComponentGraph,
    tokens: Int[Array | np.ndarray, "batch seq"],
    mask: Bool[Array | np.ndarray, "batch seq"],
) -> Float[Array, "batch sender seq d_model"]:
    """Runs a batch of prompts and returns what each sender writes."""
    return writes_of(model, graph, record(model, tokens, mask, sites_written(model)))


def sites_written(model: Transformer) -> set[Site]:
    """What is recorded of a run so that `writes_of` can tell what its senders write."""
    inside = {Site(layer, kind) for layer, block in enumerate(model.blocks) for kind in kinds_written(block)}
    return inside | {Site(None, kind) for kind in EMBEDDED[: 1 if model.W_pos is None else 2]}


def writes_of(model: Transformer, graph: ComponentGraph, run: Recorded) -> Float[Array, "batch sender seq d_model"]:
    """The same of a run in which all that it takes was recorded."""
    embedded = {site.kind: value for site, value in run.values.items() if site.kind in EMBEDDED}
    found = [embedding_writes(graph, embedded)]
    found += [block_writes(graph, block, run.in_layer(layer)) for layer, block in enumerate(model.blocks)]
    return jnp.concatenate(found, axis=1)


def block_writes(
    graph: ComponentGraph, block: Block, values: Mapping[Kind, Float[Array, "batch ..."]]
) -> Float[Array, "batch sender seq d_model"]:
    """The same of one block; what else was recorded there is no part of the program, which all blocks share."""
    return _of_block(graph, block, {kind: values[kind] for kind in kinds_written(block)})


def writes_in_block(
    graph: ComponentGraph, block: Block, values: Mapping[Kind, Float[Array, "batch ..."]]
) -> Float[Array, "batch sender seq d_model"]:
    """The same as a part of another program."""

    def one(values):
        attention = attention_writes(graph, block, values)
        return attention if block.mlp is None else jnp.concatenate([attention, mlp_writes(graph, block, values)])

    return jax.vmap(one)(values)


_of_block = jax.jit(writes_in_block, static_argnames="graph")


def _bias(norm: Norm) -> Float[Array, " d_model"] | float:
    return wide(norm.bias) if isinstance(norm, LayerNorm) and norm.bias is not None else 0.0
