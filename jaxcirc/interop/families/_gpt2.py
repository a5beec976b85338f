"""GPT-2: learned positions, layer norms, linear maps that are stored input first."""

import re
from collections.abc import Mapping
from typing import Any

from .._attributes import NO_ROTATION, ONLY
from .._keymaps import Key, Table, vector
from .._spec import ATTENTION_BIASES, MLP_BIASES, Spec
from ._family import activation, count, Family, per_head, positive


EMBEDDING = Key(("W_E",), "d_vocab d_model", "wte.weight", "d_vocab d_model", "wte.embedding", "d_vocab d_model")
HEAD = Key(("W_U",), "d_model d_vocab", "lm_head.weight", "d_vocab d_model", "lm_head.kernel", "d_model d_vocab")
OUTSIDE = (
    Key(("W_pos",), "n_ctx d_model", "wpe.weight", "n_ctx d_model", "wpe.embedding", "n_ctx d_model"),
    vector("ln_final.weight", "ln_f.weight", "ln_f.scale"),
    vector("ln_final.bias", "ln_f.bias", "ln_f.bias"),
)
NORMS = tuple(
    vector(f"ln{i}.{ours}", f"h.{{layer}}.ln_{i}.{ours}", f"h.{{layer}}.ln_{i}.{flax}")
    for i in (1, 2)
    for ours, flax in (("weight", "scale"), ("bias", "bias"))
)
BIASES = (
    vector("mlp.b_in", "h.{layer}.mlp.c_fc.bias", "h.{layer}.mlp.c_fc.bias", "d_mlp"),
    vector("mlp.b_out", "h.{layer}.mlp.c_proj.bias", "h.{layer}.mlp.c_proj.bias"),
)
# Hugging Face's Flax version stores the same kernels output first.
# fmt: off
_BLOCK = (
    Key(("attn.W_Q", "attn.W_K", "attn.W_V"), "part head d_model d_head",
        "h.{layer}.attn.c_attn.weight", "d_model (part head d_head)", "h.{layer}.attn.c_attn.kernel", "(part head d_head) d_model"),
    Key(("attn.b_Q", "attn.b_K", "attn.b_V"), "part head d_head",
        "h.{layer}.attn.c_attn.bias", "(part head d_head)", "h.{layer}.attn.c_attn.bias", "(part head d_head)"),
    Key(("attn.W_O",), "head d_head d_model",
        "h.{layer}.attn.c_proj.weight", "(head d_head) d_model", "h.{layer}.attn.c_proj.kernel", "d_model (head d_head)"),
    vector("attn.b_O", "h.{layer}.attn.c_proj.bias", "h.{layer}.attn.c_proj.bias"),
    Key(("mlp.W_in",), "d_model d_mlp", "h.{layer}.mlp.c_fc.weight", "d_model d_mlp", "h.{layer}.mlp.c_fc.kernel", "d_mlp d_model"),
    Key(("mlp.W_out",), "d_mlp d_model", "h.{layer}.mlp.c_proj.weight", "d_mlp d_model", "h.{layer}.mlp.c_proj.kernel", "d_model d_mlp"),
)
# fmt: on


def _read(values: Mapping[str, Any], source: str) -> Spec:
    n_layers, n_heads, d_model = (count(values, name, source) for name in ("n_layer", "n_head", "n_embd"))
    d_head, d_vocab = per_head(d_model, n_heads, "n_embd", "n_head", source), count(values, "vocab_size", source)
    scaling = bool(values["scale_attn_weights"]), bool(values["scale_attn_by_inverse_layer_idx"])
    return Spec(
        architecture="gpt2",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=4 * d_model if values["n_inner"] is None else count(values, "n_inner", source),
        d_vocab=d_vocab,
        d_vocab_out=d_vocab,
        n_ctx=count(values, "n_positions", source),
        act=activation(values, "activation_function", source),
        eps=positive(values, "layer_norm_epsilon", source),
        norm="LN",
        scales=_scales(n_layers, d_head, *scaling),
        windows=(None,) * n_layers,
        causal=True,
        tied=bool(values["tie_word_embeddings"]),
        biases=ATTENTION_BIASES | MLP_BIASES,
    )


def _write(spec: Spec) -> dict[str, Any]:
    scaled, by_layer = _scaling(spec)
    return {
        "activation_function": spec.act,
        "layer_norm_epsilon": spec.eps,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_embd": spec.d_model,
        "n_inner": spec.d_mlp,
        "n_positions": spec.n_ctx,
        "scale_attn_weights": scaled,
        "scale_attn_by_inverse_layer_idx": by_layer,
    }


def _scaling(spec: Spec) -> tuple[bool, bool]:
    """Finds (`scale_attn_weights`, `scale_attn_by_inverse_layer_idx`) that give these score scales, or come nearest."""
    choices = [(scaled, by_layer) for scaled in (True, False) for by_layer in (False, True)]

    def distance(choice: tuple[bool, bool]) -> float:
        wanted = _scales(spec.n_layers, spec.d_head, *choice)
        return max(abs(a - b) / b for a, b in zip(spec.scales, wanted, strict=True))

    return min(choices, key=distance)


def _scales(n_layers: int, d_head: int, scaled: bool, by_layer: bool) -> tuple[float, ...]:
    base = d_head**-0.5 if scaled else 1.0
    return tuple(base / (layer + 1) if by_layer else base for layer in range(n_layers))


GPT2 = Family(
    classes=("GPT2LMHeadModel", "GPT2Model"),
    used={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    },
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    only=ONLY | NO_ROTATION,
    read=_read,
    write=_write,
    table=Table(
        EMBEDDING,
        HEAD,
        OUTSIDE,
        (*_BLOCK, *NORMS, *BIASES),
        prefixes=("transformer.",),
        ignored=re.compile(r"h\.\d+\.attn\.(bias|masked_bias)"),  # masks
        flax=True,
    ),
)
