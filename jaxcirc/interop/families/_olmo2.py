"""OLMo 2: norms of what the sublayers write, none of what they read; queries and keys normalised over all heads together."""

from collections.abc import Mapping
from typing import Any

from .._keymaps import linear, Table
from .._spec import ATTENTION_BIASES, Spec
from ._family import Family
from ._llama import TABLE
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
    used,
    write_common,
)
from ._rope import read_rotation


def _read(values: Mapping[str, Any], source: str) -> Spec:
    common = read_common(values, source)
    return Spec(
        architecture="olmo2",
        rotations=(read_rotation(values, source, d_head=common["d_head"]),) * common["n_layers"],
        biases=ATTENTION_BIASES if values["attention_bias"] else frozenset(),
        before=False,
        behind=True,
        qk_norm="all",
        **common,
    )


OLMO2 = Family(
    classes=("Olmo2ForCausalLM", "Olmo2Model"),
    used=used(vocab_size=50304, rms_norm_eps=1e-5, attention_bias=False),
    only=ONLY_RMS | NO_WINDOWS,
    ignored=IGNORED_RMS,
    read=_read,
    write=lambda spec: write_common(spec) | {"attention_bias": bool(spec.biases)},
    table=Table(
        EMBEDDING,
        HEAD,
        (FINAL,),
        (
            *LINEARS,
            *(
                linear(
                    f"attn.{part}_norm.weight",
                    f"{heads} d_head",
                    f"layers.{{layer}}.self_attn.{part}_norm.weight",
                    f"({heads} d_head)",
                )
                for part, heads in (("q", "head"), ("k", "kv_head"))
            ),
            *norm_rows(ln1_post="post_attention_layernorm", ln2_post="post_feedforward_layernorm"),
        ),
        prefixes=("model.",),
        ignored=TABLE.ignored,
    ),
)
