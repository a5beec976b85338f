"""Gemma 1, 2 and 3: norms that multiply by one plus their weight, scaled embeddings; behind the sublayers norms too from 2 on, caps in 2,
norms of queries and keys and two kinds of rotation in 3.
"""

import re
from collections.abc import Mapping
from typing import Any

from .._attributes import Inert, inert
from .._keymaps import Table
from .._rotation import Rotation
from .._spec import ATTENTION_BIASES, Spec
from ._family import bound, count, Family, positive
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
    QK_NORMS,
    read_common,
    read_layer_types,
    read_windows,
    used,
    write_common,
    write_windows,
)
from ._rope import read_rotation, ROPE, write_parameters, write_scaling


_ACT = "hidden_activation"
_VISION = re.compile(rf"{TABLE.ignored.pattern}|(vision_tower|multi_modal_projector)\..*")
_GLOBAL_THETA, _LOCAL_THETA = 1e6, 1e4


def _read_common(values: Mapping[str, Any], source: str, act: str) -> dict[str, Any]:
    common = read_common(values, source, act=act)
    biases = ATTENTION_BIASES if values["attention_bias"] else frozenset()
    return common | {"offset": 1.0, "embed_scale": common["d_model"] ** 0.5, "biases": biases}


def _write_common(spec: Spec, act: str) -> dict[str, Any]:
    return write_common(spec, act=act) | {"attention_bias": bool(spec.biases)}


def _read_gemma1(values: Mapping[str, Any], source: str) -> Spec:
    # What these configurations call gelu is the tanh form, and the two names of the attribute mean one thing.
    tanh = {"gelu": "gelu_pytorch_tanh"}
    act, other = (tanh.get(values[name], values[name]) for name in ("hidden_act", _ACT))
    if other not in (None, act):
        raise ValueError(f"{source} says both hidden_act = {values['hidden_act']!r} and {_ACT} = {values[_ACT]!r}.")
    common = _read_common({**values, "hidden_act": act}, source, "hidden_act")
    rotation = read_rotation(values, source, d_head=common["d_head"])
    return Spec(architecture="gemma", rotations=(rotation,) * common["n_layers"], **common)


def _read_later(values: Mapping[str, Any], source: str, derived: list[bool]) -> dict[str, Any]:
    """Reads what Gemma 2 and 3 share; `derived` are the layers with windows where the configuration does not say."""
    common = _read_common(values, source, _ACT)
    n_layers = common["n_layers"]
    slides = read_layer_types(values, n_layers, derived, source)
    scale = positive(values, "query_pre_attn_scalar", source) ** -0.5
    return common | {
        "scales": (scale,) * n_layers,
        "windows": read_windows(values, slides, source),
        "behind": True,
        "logit_cap": bound(values, "final_logit_softcapping", source),
    }


def _write_later(spec: Spec) -> dict[str, Any]:
    return (
        _write_common(spec, _ACT)
        | write_windows(spec)
        | {"query_pre_attn_scalar": _scalar(spec), "final_logit_softcapping": spec.logit_cap}
    )


def _scalar(spec: Spec) -> float | int:
    """The number whose root divides the scores: whole where it is that but for the rounding of the scale."""
    value = spec.scales[0] ** -2
    return round(value) if abs(value - round(value)) <= 2 * spec.precision * value else value


def _read_gemma2(values: Mapping[str, Any], source: str) -> Spec:
    n_layers = count(values, "num_hidden_layers", source)
    common = _read_later(values, source, [layer % 2 == 0 for layer in range(n_layers)])
    rotation = read_rotation(values, source, d_head=common["d_head"])
    cap = bound(values, "attn_logit_softcapping", source)
    return Spec(architecture="gemma2", rotations=(rotation,) * n_layers, cap=cap, **common)


def _read_gemma3(values: Mapping[str, Any], source: str) -> Spec:
    n_layers, pattern = (count(values, name, source) for name in ("num_hidden_layers", "sliding_window_pattern"))
    derived = [bool((layer + 1) % pattern) for layer in range(n_layers)]
    common, slides = _read_later(values, source, derived), read_layer_types(values, n_layers, derived, source)
    full, sliding = _rotations(values, source, common["d_head"])
    rotations = tuple(sliding if slide else full for slide in slides)
    return Spec(architecture="gemma3_text", rotations=rotations, qk_norm="head", **common)


def _rotations(values: Mapping[str, Any], source: str, d_head: int) -> tuple[Rotation, Rotation]:
    """Those of layers that attend to all, and of layers that attend to a window, where no scaling of the older spelling applies."""
    given = values["rope_parameters"] or {}
    kinds = ("full_attention", "sliding_attention")
    if not isinstance(given, Mapping) or not set(given) <= set(kinds):
        raise ValueError(
            f"{source}: rope_parameters = {given!r} is not understood; expected an object for each of {', '.join(kinds)}."
        )
    full, sliding = ({**values, "rope_parameters": given.get(kind)} for kind in kinds)
    sliding["rope_scaling"] = None
    return (
        read_rotation(full, source, d_head=d_head, theta=_GLOBAL_THETA),
        read_rotation(sliding, source, d_head=d_head, theta=_LOCAL_THETA, plain="rope_local_base_freq"),
    )


def _write_gemma3(spec: Spec) -> dict[str, Any]:
    kinds = {window is None: rotation for window, rotation in zip(spec.windows, spec.rotations, strict=True)}
    full, sliding = kinds.get(True), kinds.get(False)
    if sliding is not None and sliding.scaling is not None:  # for which the older spelling has no attribute
        named = {"full_attention": full or Rotation(_GLOBAL_THETA, sliding.width), "sliding_attention": sliding}
        rest = {name: value for name, value in _write_later(spec).items() if name not in ROPE}
        return rest | {"rope_parameters": {kind: write_parameters(rotation) for kind, rotation in named.items()}}
    return _write_later(spec) | {
        "rope_theta": _GLOBAL_THETA if full is None else full.theta,
        "rope_scaling": write_scaling(full),
        "rope_local_base_freq": _LOCAL_THETA if sliding is None else sliding.theta,
    }


_ONLY: dict[str, Inert] = ONLY_RMS | {
    "use_bidirectional_attention": inert(False, None, does="attention is in both directions")
}
# `hidden_act` is read by no later Gemma. `_sliding_window_pattern` holds its default, whatever `layer_types` says.
_IGNORED = IGNORED_RMS | {"hidden_act", "_sliding_window_pattern", "sliding_window_size"}
_COMMON = used(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    attention_bias=False,
)
_LATER = {name: value for name, value in _COMMON.items() if name != "hidden_act"} | {
    _ACT: "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "layer_types": None,
}
_LATER_BLOCK = (
    *LINEARS,
    *norm_rows(
        ln1="input_layernorm",
        ln1_post="post_attention_layernorm",
        ln2="pre_feedforward_layernorm",
        ln2_post="post_feedforward_layernorm",
    ),
)
GEMMA1 = Family(
    classes=("GemmaForCausalLM", "GemmaModel"),
    used=_COMMON
    | {
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        _ACT: None,
    },
    only=_ONLY | NO_WINDOWS,
    ignored=IGNORED_RMS,
    read=_read_gemma1,
    write=lambda spec: _write_common(spec, "hidden_act"),
    table=TABLE,
)
GEMMA2 = Family(
    classes=("Gemma2ForCausalLM", "Gemma2Model"),
    used=_LATER | {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0},
    only=_ONLY,
    ignored=_IGNORED,
    read=_read_gemma2,
    write=lambda spec: _write_later(spec) | {"attn_logit_softcapping": spec.cap},
    table=Table(EMBEDDING, HEAD, (FINAL,), _LATER_BLOCK, prefixes=("model.",), ignored=TABLE.ignored),
)
GEMMA3 = Family(
    classes=("Gemma3ForCausalLM", "Gemma3TextModel"),
    used=_LATER
    | {
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "rope_local_base_freq": None,
        "sliding_window_pattern": 6,
    },
    only=_ONLY
    | {
        "attn_logit_softcapping": inert(
            None, does="attention scores are bounded, and transformers computes them without a bound"
        )
    },
    ignored=_IGNORED,
    read=_read_gemma3,
    write=_write_gemma3,
    table=Table(
        EMBEDDING,
        HEAD,
        (FINAL,),
        (*_LATER_BLOCK, *QK_NORMS),
        # The longer ones are of models that also see, before transformers 5 and since.
        prefixes=("model.", "model.language_model.", "language_model.model.", "language_model."),
        ignored=_VISION,
    ),
)
