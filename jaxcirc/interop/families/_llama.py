"""Llama 1 to 3 and what is made like it, SmolLM2 among them, and Mistral, whose layers attend to a window."""

import re
from collections.abc import Mapping
from typing import Any

from .._attributes import inert
from .._keymaps import Table
from .._spec import ATTENTION_BIASES, Spec
from ._family import Family
from ._rms import (
    EMBEDDING,
    FINAL,
    HEAD,
    IGNORED_RMS,
    LINEARS,
    NO_WINDOWS,
    norm_rows,
    ONLY_RMS,
    read_common,
    read_windows,
    used,
    write_common,
    write_windows,
)
from ._rope import read_rotation


TABLE = Table(
    EMBEDDING,
    HEAD,
    (FINAL,),
    (*LINEARS, *norm_rows(ln1="input_layernorm", ln2="post_attention_layernorm")),
    prefixes=("model.",),
    ignored=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
)


def _read_llama(values: Mapping[str, Any], source: str) -> Spec:
    common = read_common(values, source)
    return Spec(
        architecture="llama",
        rotations=(read_rotation(values, source, d_head=common["d_head"]),) * common["n_layers"],
        biases=frozenset(
            (*(ATTENTION_BIASES if values["attention_bias"] else ()), *(_MLP_BIASES if values["mlp_bias"] else ()))
        ),
        **common,
    )


def _write_llama(spec: Spec) -> dict[str, Any]:
    return write_common(spec) | {
        "attention_bias": bool(spec.biases & ATTENTION_BIASES),
        "mlp_bias": bool(spec.biases & _MLP_BIASES),
    }


def _read_mistral(values: Mapping[str, Any], source: str) -> Spec:
    common = read_common(values, source)
    slides = [values["sliding_window"] is not None] * common["n_layers"]
    common["windows"] = read_windows(values, slides, source)
    return Spec(
        architecture="mistral",
        rotations=(read_rotation(values, source, d_head=common["d_head"]),) * common["n_layers"],
        **common,
    )


def _all_slide(value: Any, config: Mapping[str, Any]) -> bool:
    kind = "full_attention" if config.get("sliding_window", 4096) is None else "sliding_attention"
    return isinstance(value, list | tuple) and set(value) <= {kind}


def _as_the_window_says(value: Any, config: Mapping[str, Any]) -> bool:
    return value is (config.get("sliding_window", 4096) is not None)


_MLP_BIASES = frozenset(("mlp.b_gate", "mlp.b_in", "mlp.b_out"))
LLAMA = Family(
    classes=("LlamaForCausalLM", "LlamaModel"),
    used=used(attention_bias=False, mlp_bias=False),
    only=ONLY_RMS | NO_WINDOWS,
    ignored=IGNORED_RMS,
    read=_read_llama,
    write=_write_llama,
    table=TABLE,
)
MISTRAL = Family(
    classes=("MistralForCausalLM", "MistralModel"),
    used=used(intermediate_size=14336, num_key_value_heads=8, max_position_embeddings=4096 * 32, sliding_window=4096),
    only=ONLY_RMS
    | {
        "layer_types": inert(None, does="layers differ in what they attend to", also=_all_slide),
        "use_sliding_window": inert(
            None, does="layers attend to a window or to all, other than sliding_window says", also=_as_the_window_says
        ),
    },
    ignored=IGNORED_RMS,
    read=_read_mistral,
    write=lambda spec: write_common(spec) | {"sliding_window": write_windows(spec)["sliding_window"]},
    table=TABLE,
)
