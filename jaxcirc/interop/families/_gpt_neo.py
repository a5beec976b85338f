"""GPT-Neo: GPT-2 with scores that are not scaled, and local attention in every other layer."""

import re
from collections.abc import Mapping
from typing import Any

from .._attributes import NO_ROTATION, ONLY
from .._keymaps import Key, Table, vector
from .._spec import MLP_BIASES, Spec
from ._family import activation, count, Family, per_head, positive
from ._gpt2 import BIASES, EMBEDDING, HEAD, NORMS, OUTSIDE


# Linear layers, output first in PyTorch and input first in Flax.
# fmt: off
_BLOCK = (
    *(Key((f"attn.W_{part}",), "head d_model d_head",
          f"h.{{layer}}.attn.attention.{part.lower()}_proj.weight", "(head d_head) d_model",
          f"h.{{layer}}.attn.attention.{part.lower()}_proj.kernel", "d_model (head d_head)")
      for part in ("Q", "K", "V")),
    Key(("attn.W_O",), "head d_head d_model",
        "h.{layer}.attn.attention.out_proj.weight", "d_model (head d_head)",
        "h.{layer}.attn.attention.out_proj.kernel", "(head d_head) d_model"),
    vector("attn.b_O", "h.{layer}.attn.attention.out_proj.bias", "h.{layer}.attn.attention.out_proj.bias"),
    Key(("mlp.W_in",), "d_model d_mlp", "h.{layer}.mlp.c_fc.weight", "d_mlp d_model", "h.{layer}.mlp.c_fc.kernel", "d_model d_mlp"),
    Key(("mlp.W_out",), "d_mlp d_model", "h.{layer}.mlp.c_proj.weight", "d_model d_mlp", "h.{layer}.mlp.c_proj.kernel", "d_mlp d_model"),
)
# fmt: on


def _read(values: Mapping[str, Any], source: str) -> Spec:
    n_layers, n_heads, d_model = (count(values, name, source) for name in ("num_layers", "num_heads", "hidden_size"))
    kinds, window = _attention_kinds(values, n_layers, source), count(values, "window_size", source)
    d_vocab, inner = count(values, "vocab_size", source), values["intermediate_size"]
    return Spec(
        architecture="gpt_neo",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=per_head(d_model, n_heads, "hidden_size", "num_heads", source),
        d_model=d_model,
        d_mlp=4 * d_model if inner is None else count(values, "intermediate_size", source),
        d_vocab=d_vocab,
        d_vocab_out=d_vocab,
        n_ctx=count(values, "max_position_embeddings", source),
        act=activation(values, "activation_function", source),
        eps=positive(values, "layer_norm_epsilon", source),
        norm="LN",
        scales=(1.0,) * n_layers,  # GPT-Neo does not divide by sqrt(d_head)
        windows=tuple(window if kind == "local" else None for kind in kinds),
        causal=True,
        tied=bool(values["tie_word_embeddings"]),
        biases=MLP_BIASES | {"attn.b_O"},
    )


def _write(spec: Spec) -> dict[str, Any]:
    kinds = ["global" if window is None else "local" for window in spec.windows]
    return {
        "activation_function": spec.act,
        "layer_norm_epsilon": spec.eps,
        "num_layers": spec.n_layers,
        "num_heads": spec.n_heads,
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_mlp,
        "max_position_embeddings": spec.n_ctx,
        "window_size": next((window for window in spec.windows if window is not None), 256),
        "attention_layers": kinds,
        "attention_types": [[kinds, 1]],
    }


def _attention_kinds(values: Mapping[str, Any], n_layers: int, source: str) -> list[str]:
    types, layers = values["attention_types"], values["attention_layers"]
    if types is None and layers is None:
        types = [[["global", "local"], 12]]
    try:
        expanded = [kind for group, times in types or () for _ in range(times) for kind in group]
    except (TypeError, ValueError):
        raise ValueError(
            f"{source}: attention_types = {types!r} is not understood; expected [[kinds, times], …], such as [[['global', 'local'], 6]]."
        ) from None
    if layers is not None and types is not None and list(layers) != expanded:
        raise ValueError(
            f"{source}: config.json gives attention_layers {layers}, and attention_types that say {expanded}."
        )
    kinds = expanded if layers is None else list(layers)
    if len(kinds) != n_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(
            f"{source}: expected {n_layers} entries of 'global' or 'local', one a layer, in attention_layers or "
            f"attention_types; got {kinds}."
        )
    return kinds


GPT_NEO = Family(
    classes=("GPTNeoForCausalLM", "GPTNeoModel"),
    used={
        "vocab_size": 50257,
        "max_position_embeddings": 2048,
        "hidden_size": 2048,
        "num_layers": 24,
        "num_heads": 16,
        "intermediate_size": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "attention_types": None,
        "attention_layers": None,
        "window_size": 256,
        "tie_word_embeddings": True,
    },
    aliases={"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
    only=ONLY | NO_ROTATION,
    read=_read,
    write=_write,
    table=Table(
        EMBEDDING,
        HEAD,
        OUTSIDE,
        (*_BLOCK, *NORMS, *BIASES),
        prefixes=("transformer.",),
        ignored=re.compile(r"h\.\d+\.attn\.attention\.(bias|masked_bias)"),  # masks
        flax=True,
    ),
)
