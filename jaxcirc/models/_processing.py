"""Weight processing: other weights for the same log-probabilities, in which what the norms and the softmaxes ignore is no longer there."""

import dataclasses as dc
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_kind
from .._precision import wide
from ..parts import Attention, Block, LayerNorm, MLP
from ._transformer import Transformer


def process_weights(
    model: Transformer,
    *,
    fold_layer_norm: bool = True,
    center_writing: bool = True,
    center_unembed: bool = True,
    fold_value_biases: bool = True,
) -> Transformer:
    r"""The same language model with simpler weights: TransformerLens' processing, in its order. Log-probabilities stay as they are.

    - `fold_layer_norm`: the weight `g` and bias `b` of a norm go into the matrix `W` `[d_model …]` that reads it, `W' = diag(g) W`
      less its mean over d_model (a norm's output has none, so it would multiply zero), and into its bias, `bias' = bias + b W`. Norms are
      left without weights, and `b_U` is no longer zero.
    - `center_writing`: what is written to the residual stream loses its mean over d_model, which every norm subtracts.
    - `center_unembed`: `W_U` and `b_U` lose their mean over the vocabulary; the logits of a position shift together.
    - `fold_value_biases`: each row of an attention pattern sums to one, so `b_V` adds `b_V W_O` at every position: it goes into `b_O`.

    **Returns:** a new model with its own unembedding; `model.processing` names the steps done, in order. Weights of half precision are
    rounded to it anew, so load a model in float32 for log-probabilities that are the same.

    **Raises:** `ValueError` if `center_writing` is asked of a model without norms, whose function it would change.

    >>> jc.process_weights(model, center_unembed=False).processing
    ('fold_layer_norm', 'center_writing', 'fold_value_biases')
    """
    check_kind("process_weights: model", model, Transformer, "a model, as jc.from_pretrained gives one")
    if center_writing and model.ln_final is None:
        raise ValueError(
            f"{model.name} has no layer norms, so the mean of its residual stream matters. Pass center_writing=False."
        )
    steps: dict[str, tuple[bool, Callable[[Transformer], Transformer]]] = {
        "fold_layer_norm": (fold_layer_norm, _fold_layer_norm),
        "center_writing": (center_writing, _center_writing),
        "center_unembed": (center_unembed, _center_unembed),
        "fold_value_biases": (fold_value_biases, _fold_value_biases),
    }
    done = set(model.processing)
    model = dc.replace(model, untied_W_U=model.W_U)  # it and `W_E` are processed differently
    for name, (wanted, step) in steps.items():
        if wanted:
            model, done = step(model), done | {name}
    return dc.replace(model, processing=tuple(name for name in steps if name in done))


def _fold_layer_norm(model: Transformer) -> Transformer:
    if model.ln_final is None:
        return model
    ln_final, (W_U,), (b_U,) = _fold(model.ln_final, (model.W_U,), (model.b_U,))
    model = dc.replace(model, ln_final=ln_final, untied_W_U=W_U, b_U=b_U)
    return dc.replace(model, blocks=tuple(map(_fold_block, model.blocks)))


def _fold_block(block: Block) -> Block:
    attn, mlp = block.attn, block.mlp
    if block.ln1 is not None:
        matrices, biases = (attn.W_Q, attn.W_K, attn.W_V), (attn.b_Q, attn.b_K, attn.b_V)
        ln1, (W_Q, W_K, W_V), (b_Q, b_K, b_V) = _fold(block.ln1, matrices, biases)
        attn = dc.replace(attn, W_Q=W_Q, W_K=W_K, W_V=W_V, b_Q=b_Q, b_K=b_K, b_V=b_V)
        block = dc.replace(block, ln1=ln1, attn=attn)
    if block.ln2 is not None and mlp is not None:
        ln2, (W_in,), (b_in,) = _fold(block.ln2, (mlp.W_in,), (mlp.b_in,))
        block = dc.replace(block, ln2=ln2, mlp=dc.replace(mlp, W_in=W_in, b_in=b_in))
    return block


def _fold(
    norm: LayerNorm, matrices: tuple[Array, ...], biases: tuple[Array, ...]
) -> tuple[LayerNorm, list[Array], list[Array]]:
    """`norm` without weights, and the matrices `[… d_model out]` and biases `[… out]` that read it with the weights folded in."""
    folded, moved = [], []
    for W, b in zip(matrices, biases, strict=True):
        if norm.bias is not None:
            # [d_model] · [… d_model out] -> [… out]
            constant = jnp.einsum("m,...mo->...o", wide(norm.bias), wide(W), precision=jax.lax.Precision.HIGHEST)
            b = (wide(b) + constant).astype(b.dtype)
        scaled = wide(W) if norm.weight is None else wide(norm.weight)[:, None] * wide(W)
        folded.append(_centred(scaled, -2).astype(W.dtype))
        moved.append(b)
    return dc.replace(norm, weight=None, bias=None), folded, moved


def _center_writing(model: Transformer) -> Transformer:
    def attention(attn: Attention) -> Attention:
        return dc.replace(attn, W_O=_centred(attn.W_O, -1), b_O=_centred(attn.b_O, -1))

    def feed_forward(mlp: MLP | None) -> MLP | None:
        return None if mlp is None else dc.replace(mlp, W_out=_centred(mlp.W_out, -1), b_out=_centred(mlp.b_out, -1))

    blocks = tuple(dc.replace(block, attn=attention(block.attn), mlp=feed_forward(block.mlp)) for block in model.blocks)
    return dc.replace(model, W_E=_centred(model.W_E, -1), W_pos=_centred(model.W_pos, -1), blocks=blocks)


def _center_unembed(model: Transformer) -> Transformer:
    return dc.replace(model, untied_W_U=_centred(model.W_U, -1), b_U=_centred(model.b_U, -1))


def _fold_value_biases(model: Transformer) -> Transformer:
    def attention(attn: Attention) -> Attention:
        # [head d_head] · [head d_head d_model] -> [d_model]
        constant = jnp.einsum("hd,hdm->m", wide(attn.b_V), wide(attn.W_O), precision=jax.lax.Precision.HIGHEST)
        b_O = (wide(attn.b_O) + constant).astype(attn.b_O.dtype)
        return dc.replace(attn, b_V=jnp.zeros_like(attn.b_V), b_O=b_O)

    return dc.replace(model, blocks=tuple(dc.replace(block, attn=attention(block.attn)) for block in model.blocks))


def _centred(array: Array, axis: int) -> Array:
    values = wide(array)
    return (values - jnp.mean(values, axis=axis, keepdims=True)).astype(array.dtype)
