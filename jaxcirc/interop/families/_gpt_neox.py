"""GPT-NeoX, of which the Pythia models are: layer norms, attention beside the MLP, a part of each head rotated."""

import re
from collections.abc import Mapping
from typing import Any

from .._attributes import inert, ONLY
from .._keymaps import Key, linear, Table, vector
from .._spec import ATTENTION_BIASES, MLP_BIASES, Spec
from ._family import activation, count, Family, per_head, positive
from ._rope import read_rotation, ROPE, write_scaling


_BLOCK = (
    # Head by head, queries, keys and values of each.
    *(
        Key(
            tuple(f"attn.{what}_{part}" for part in "QKV"),
            axes,
            f"layers.{{layer}}.attention.query_key_value.{name}",
            stored,
        )
        for what, name, axes, stored in (
            ("W", "weight", "part head d_model d_head", "(head part d_head) d_model"),
            ("b", "bias", "part head d_head", "(head part d_head)"),
        )
    ),
    linear("attn.W_O", "head d_head d_model", "layers.{layer}.attention.dense.weight", "d_model (head d_head)"),
    vector("attn.b_O", "layers.{layer}.attention.dense.bias"),
    linear("mlp.W_in", "d_model d_mlp", "layers.{layer}.mlp.dense_h_to_4h.weight", "d_mlp d_model"),
    vector("mlp.b_in", "layers.{layer}.mlp.dense_h_to_4h.bias", axes="d_mlp"),
    linear("mlp.W_out", "d_mlp d_model", "layers.{layer}.mlp.dense_4h_to_h.weight", "d_model d_mlp"),
    vector("mlp.b_out", "layers.{layer}.mlp.dense_4h_to_h.bias"),
    *(
        vector(f"{ours}.{which}", f"layers.{{layer}}.{theirs}.{which}")
        for ours, theirs in (("ln1", "input_layernorm"), ("ln2", "post_attention_layernorm"))
        for which in ("weight", "bias")
    ),
)


def _read(values: Mapping[str, Any], source: str) -> Spec:
    n_layers, n_heads, d_model, d_vocab = (
        count(values, name, source)
        for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    )
    d_head = per_head(d_model, n_heads, "hidden_size", "num_attention_heads", source)
    share = 0.0 if values["rotary_pct"] is None else values["rotary_pct"]  # neither is one
    rotation = read_rotation(values, source, d_head=d_head, share=share, plain="rotary_emb_base")
    return Spec(
        architecture="gpt_neox",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=count(values, "intermediate_size", source),
        d_vocab=d_vocab,
        d_vocab_out=d_vocab,
        n_ctx=count(values, "max_position_embeddings", source),
        act=activation(values, "hidden_act", source),
        eps=positive(values, "layer_norm_eps", source),
        norm="LN",
        scales=(d_head**-0.5,) * n_layers,
        windows=(None,) * n_layers,
        causal=True,
        tied=bool(values["tie_word_embeddings"]),
        biases=MLP_BIASES | (ATTENTION_BIASES if values["attention_bias"] else frozenset()),
        parallel=bool(values["use_parallel_residual"]),
        rotations=(rotation,) * n_layers,
    )


def _write(spec: Spec) -> dict[str, Any]:
    rotation = spec.rotations[0] if spec.rotations else None
    rotary = (
        {}
        if rotation is None
        else {"rotary_emb_base": rotation.theta, "rotary_pct": _share(rotation.width, spec.d_head)}
    )
    return rotary | {
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_mlp,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "hidden_act": spec.act,
        "max_position_embeddings": spec.n_ctx,
        "layer_norm_eps": spec.eps,
        "use_parallel_residual": spec.parallel,
        "attention_bias": bool(spec.biases & ATTENTION_BIASES),
        "rope_scaling": write_scaling(rotation),
    }


def _share(width: int, d_head: int) -> float:
    """A number that, times the width of a head and rounded down, is `width`."""
    return width / d_head if int(d_head * (width / d_head)) == width else (width + 0.5) / d_head


GPT_NEOX = Family(
    classes=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    used={
        "vocab_size": 50432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_parallel_residual": True,
        "attention_bias": True,
        "rotary_pct": 0.25,
        "rotary_emb_base": None,
        **{name: None for name in ROPE if name != "rope_theta"},
    },
    only=ONLY
    | {
        "rope_theta": inert(
            None,
            does="frequencies have another base than rotary_emb_base, which is read",
            also=lambda value, config: value == config.get("rotary_emb_base", 10000),
        )
    },
    ignored=frozenset(("hidden_dropout",)),
    read=_read,
    write=_write,
    table=Table(
        linear("W_E", "d_vocab d_model", "embed_in.weight", "d_vocab d_model"),
        linear("W_U", "d_model d_vocab", "embed_out.weight", "d_vocab d_model"),
        tuple(vector(f"ln_final.{which}", f"final_layer_norm.{which}") for which in ("weight", "bias")),
        _BLOCK,
        prefixes=("gpt_neox.",),
        aliases={"lm_head.weight": "embed_out.weight"},
        ignored=re.compile(r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)"),
    ),
)
