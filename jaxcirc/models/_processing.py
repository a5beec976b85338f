"""Weight processing: other weights for the same log-probabilities, in which what the norms and the softmaxes ignore is no longer there."""

import dataclasses as dc
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._checks import check_kind
from .._precision import wide
from ..parts import Attention, Block, GatedMLP, LayerNorm, MLP, Norm, RMSNorm
from ..parts._held_norm import pull_through_norm
from ._known import check_known, OF_BLOCK
from ._transformer import Transformer


Part = TypeVar("Part", bound=Attention | MLP | GatedMLP)


def process_weights(
    model: Transformer,
    *,
    fold_layer_norm: bool | None = None,
    center_writing: bool | None = None,
    center_unembed: bool | None = None,
    fold_value_biases: bool | None = None,
) -> Transformer:
    r"""The same language model with simpler weights: TransformerLens' processing, in its order. Log-probabilities stay as they are.

    - `fold_layer_norm`: the weight `g` and bias `b` of a norm go into the matrices `W` `[d_model …]` that read it, `W' = diag(g) W`, and
      into their biases, `bias' = bias + b W`. `W'` of a layer norm loses its mean over d_model, too (the norm's output has none, so it
      would multiply zero). For an RMS norm `g` is its weight with its offset. Norms before attention and the MLP and the final one are
      left without weights. Those behind a sublayer and those of queries and keys stay as they are: what follows them is the sum of the
      residual stream, and a rotation, into which no weight goes.
    - `center_writing`: what is written to the residual stream loses its mean over d_model, which every layer norm subtracts.
    - `center_unembed`: `W_U` and `b_U` lose their mean over the vocabulary; the logits of a position shift together.
    - `fold_value_biases`: each row of an attention pattern sums to one, so `b_V` adds `b_V W_O` at every position, of each head what it
      reads: it goes into `b_O`.

    **Arguments:** for each step True, False, or `None`: where it leaves log-probabilities as they are. Folding always does. RMS norms,
    norms behind a sublayer and sublayers without a norm before them do not allow to centre what is written, nor a cap of the logits to
    centre the unembedding.

    **Returns:** a new model with its own unembedding; `model.processing` names the steps done, in order. Weights of half precision are
    rounded to it anew, so load a model in float32 for log-probabilities that are the same.

    **Raises:** `ValueError` for a step that is asked for by True and would change the model's function, with the reason; for parts of
    classes of one's own.

    >>> jc.process_weights(model, center_unembed=False).processing
    ('fold_layer_norm', 'center_writing', 'fold_value_biases')
    """
    check_kind("process_weights: model", model, Transformer, "a model, as jc.from_pretrained gives one")
    check_known("process_weights", model, *OF_BLOCK, "ln_final")
    asked = {
        "fold_layer_norm": fold_layer_norm,
        "center_writing": center_writing,
        "center_unembed": center_unembed,
        "fold_value_biases": fold_value_biases,
    }
    done, reasons = set(model.processing), {name: step.reason(model) for name, step in _STEPS.items()}
    for name, wanted in asked.items():
        if wanted and reasons[name] is not None:
            raise ValueError(f"process_weights: {model.name} has {reasons[name]} Pass {name}=False.")
    model = dc.replace(model, untied_W_U=model.W_U)  # it and `W_E` are processed differently
    for name, step in _STEPS.items():
        wanted = reasons[name] is None if asked[name] is None else asked[name]
        if wanted:
            model, done = step.apply(model), done | {name}
    return dc.replace(model, processing=tuple(name for name in _STEPS if name in done))


class _Step(NamedTuple):
    """What a step does to a model, and why a model forbids it, `None` if it does not."""

    apply: Callable[[Transformer], Transformer]
    reason: Callable[[Transformer], str | None] = lambda model: None


def _fold_layer_norm(model: Transformer) -> Transformer:
    if model.ln_final is not None:
        W_U, b_U = _folded(model.ln_final, model.W_U, model.b_U)
        model = dc.replace(model, ln_final=_bare(model.ln_final), untied_W_U=W_U, b_U=b_U)
    return dc.replace(model, blocks=tuple(map(_fold_block, model.blocks)))


def _fold_block(block: Block) -> Block:
    if block.ln1 is not None:
        block = dc.replace(block, ln1=_bare(block.ln1), attn=_fold_into(block.attn, block.ln1, "QKV"))
    if block.ln2 is not None and block.mlp is not None:
        names = ("gate", "in") if isinstance(block.mlp, GatedMLP) else ("in",)
        block = dc.replace(block, ln2=_bare(block.ln2), mlp=_fold_into(block.mlp, block.ln2, names))
    return block


def _fold_into(part: Part, norm: Norm, names: Sequence[str]) -> Part:
    """The part that reads a norm, whose weights go into the part's matrices `W_name` and biases `b_name`."""
    new = {}
    for name in names:
        new[f"W_{name}"], new[f"b_{name}"] = _folded(norm, getattr(part, f"W_{name}"), getattr(part, f"b_{name}"))
    return dc.replace(part, **new)


def _folded(norm: Norm, W: Array, b: Array) -> tuple[Array, Array]:
    """A matrix `[… d_model out]` and a bias `[… out]` that read a norm, with its weights folded in."""
    columns, constant = pull_through_norm(norm, jnp.swapaxes(wide(W), -1, -2))
    return jnp.swapaxes(columns, -1, -2).astype(W.dtype), (wide(b) + constant).astype(b.dtype)


def _bare(norm: Norm) -> Norm:
    """The norm without its weights."""
    if isinstance(norm, LayerNorm):
        return LayerNorm(None, None, norm.eps, norm.sites)
    return RMSNorm(None, norm.eps, norm.sites)


def _center_writing(model: Transformer) -> Transformer:
    def attention(attn: Attention) -> Attention:
        return dc.replace(attn, W_O=_centred(attn.W_O, -1), b_O=_centred(attn.b_O, -1))

    def feed_forward(mlp: MLP | GatedMLP | None) -> MLP | GatedMLP | None:
        return None if mlp is None else dc.replace(mlp, W_out=_centred(mlp.W_out, -1), b_out=_centred(mlp.b_out, -1))

    blocks = tuple(dc.replace(block, attn=attention(block.attn), mlp=feed_forward(block.mlp)) for block in model.blocks)
    W_pos = None if model.W_pos is None else _centred(model.W_pos, -1)
    return dc.replace(model, W_E=_centred(model.W_E, -1), W_pos=W_pos, blocks=blocks)


def _why_not_center_writing(model: Transformer) -> str | None:
    before = list(_norms_before(model))
    if all(norm is None for _, norm in before):
        return "no layer norms, so the mean of its residual stream matters."
    for where, norm in before:
        if norm is None:
            return f"no norm at `{where}`, so the mean of its residual stream matters to what reads it there."
        if not isinstance(norm, LayerNorm):
            return (
                f"at `{where}` a norm that does not subtract the mean of the residual stream: centring what is written would change "
                "its scale, and probabilities."
            )
    for layer, block in enumerate(model.blocks):
        for name in ("ln1_post", "ln2_post"):
            if getattr(block, name) is not None:
                return f"a norm behind a sublayer, `blocks.{layer}.{name}`: what it writes has a mean whatever its sublayer's is."
    return None


def _norms_before(model: Transformer) -> Iterator[tuple[str, Norm | None]]:
    """Yields the places at which the residual stream is read, with the norms there."""
    for layer, block in enumerate(model.blocks):
        yield f"blocks.{layer}.ln1", block.ln1
        if block.mlp is not None:
            yield f"blocks.{layer}.ln2", block.ln2
    yield "ln_final", model.ln_final


def _center_unembed(model: Transformer) -> Transformer:
    return dc.replace(model, untied_W_U=_centred(model.W_U, -1), b_U=_centred(model.b_U, -1))


def _why_not_center_unembed(model: Transformer) -> str | None:
    if model.logit_cap is None:
        return None
    return (
        f"logits that are capped at {model.logit_cap:g}: a shift of a position's logits before the cap is none behind it, and would change "
        "probabilities."
    )


def _fold_value_biases(model: Transformer) -> Transformer:
    def attention(attn: Attention) -> Attention:
        grouped = wide(attn.W_O).reshape(len(attn.b_V), -1, *attn.W_O.shape[1:])
        # [kv_head d_head] · [kv_head group d_head d_model] -> [d_model]
        constant = jnp.einsum("jd,jgdm->m", wide(attn.b_V), grouped, precision=jax.lax.Precision.HIGHEST)
        b_O = (wide(attn.b_O) + constant).astype(attn.b_O.dtype)
        return dc.replace(attn, b_V=jnp.zeros_like(attn.b_V), b_O=b_O)

    return dc.replace(model, blocks=tuple(dc.replace(block, attn=attention(block.attn)) for block in model.blocks))


def _centred(array: Array, axis: int) -> Array:
    values = wide(array)
    return (values - jnp.mean(values, axis=axis, keepdims=True)).astype(array.dtype)


_STEPS = {
    "fold_layer_norm": _Step(_fold_layer_norm),
    "center_writing": _Step(_center_writing, _why_not_center_writing),
    "center_unembed": _Step(_center_unembed, _why_not_center_unembed),
    "fold_value_biases": _Step(_fold_value_biases),
}
