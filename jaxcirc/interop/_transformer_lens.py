"""TransformerLens models: a state dict, and the configuration that it goes with."""

import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import DTypeLike

from ..models import Transformer
from ..saes._processing import check_steps
from . import _bridge
from ._attributes import ACTS, check_known, Inert, inert, used_values
from ._build import build
from ._spec import ATTENTION_BIASES, MLP_BIASES, Spec
from ._tensors import read, to_numpy
from .families._family import count, positive


# The attributes that are used, with TransformerLens' defaults; `...` has none.
USED: dict[str, Any] = {
    "n_layers": ...,
    "d_model": ...,
    "n_ctx": ...,
    "d_head": ...,
    "d_vocab": ...,
    "n_heads": -1,
    "d_mlp": None,
    "d_vocab_out": -1,
    "act_fn": None,
    "eps": 1e-5,
    "normalization_type": "LN",
    "attention_dir": "causal",
    "attn_only": False,
    "parallel_attn_mlp": False,
    "use_attn_scale": True,
    "attn_scale": -1.0,
    "scale_attn_by_inverse_layer_idx": False,
    "use_local_attn": False,
    "window_size": None,
    "attn_types": None,
}
_OFF = (False, None)


def _bounds_nothing(value: Any, config: Mapping[str, Any]) -> bool:
    return isinstance(value, numbers.Real) and value <= 0


def _n_heads(config: Mapping[str, Any]) -> Any:
    """As many as fill `d_model` where they are not given, which -1 says too."""
    given = config.get("n_heads", -1)
    return given if given != -1 else config.get("d_model", 0) // max(config.get("d_head", 1), 1)


def _all_are(value: Any, expected: Any) -> bool:
    """Whether every layer has what the configuration says for all of them."""
    return isinstance(value, list | tuple) and all(each == expected for each in value)


def _folded(value: Any, config: Mapping[str, Any]) -> bool:
    return config.get("normalization_type", "LN") in ("LNPre", None)


# Refused unless they are at a value with which they change nothing.
ONLY: dict[str, Inert] = {
    "architecture": inert(
        "GPT2LMHeadModel",
        "TransformerLensNative",
        None,
        does="a bridge holds another model, whose scores and masks stand in no attribute; load it with jc.from_pretrained or jc.from_torch",
        also=lambda value, config: value == "GPTNeoForCausalLM" and config.get("use_attn_scale") is False,
    ),
    "attn_scores_soft_cap": inert(-1.0, None, does="attention scores are bounded by a tanh", also=_bounds_nothing),
    "clip_qkv": inert(None, does="queries, keys and values are cut off at that size"),
    "experts_per_token": inert(None, 0, does="the MLP is a mixture of experts"),
    "final_rms": inert(
        *_OFF,
        does="the last norm does not subtract the mean",
        also=lambda _, config: config.get("normalization_type", "LN") is None,
    ),
    "gated_mlp": inert(
        *_OFF, does="the MLP multiplies by a gate", also=lambda _, config: bool(config.get("attn_only", False))
    ),
    "is_audio_model": inert(*_OFF, does="the model hears"),
    "is_multimodal": inert(*_OFF, does="the model reads more than tokens"),
    "is_stateful": inert(*_OFF, does="the model carries a state along and has no attention"),
    "is_visual_model": inert(*_OFF, does="the model sees"),
    "layer_norm_folding": inert(
        *_OFF, does="the norms have no weights any more: normalization_type is 'LNPre' then", also=_folded
    ),
    "load_in_4bit": inert(*_OFF, does="the weights are packed"),
    "n_key_value_heads": inert(
        None, does="heads share keys and values", also=lambda value, config: value == _n_heads(config)
    ),
    "num_experts": inert(None, 0, does="the MLP is a mixture of experts"),
    "output_logits_soft_cap": inert(-1.0, None, does="logits are bounded by a tanh", also=_bounds_nothing),
    "per_layer_head_dim": inert(
        None,
        does="heads are of another width in each layer",
        also=lambda value, config: _all_are(value, config.get("d_head")),
    ),
    "per_layer_num_key_value_heads": inert(
        None, does="heads share keys and values", also=lambda value, config: _all_are(value, _n_heads(config))
    ),
    "positional_embedding_type": inert(
        "standard", None, does="positions come in otherwise than by an embedding that is added"
    ),
    "post_embedding_ln": inert(*_OFF, does="a norm follows the embedding"),
    "quantization_method": inert(None, does="the weights are packed"),
    "rmsnorm_uses_offset": inert(*_OFF, does="the norms multiply by one plus their weight"),
    "scale_embedding": inert(*_OFF, does="token embeddings are multiplied by sqrt(d_model)"),
    "use_NTK_by_parts_rope": inert(*_OFF, does="positions rotate queries and keys, rescaled by parts"),
    "use_attention_sinks": inert(*_OFF, does="each head attends to a sink beside the positions"),
    "use_dynamic_ntk_rope": inert(*_OFF, does="positions rotate queries and keys, rescaled by the length"),
    "use_logn_attn": inert(*_OFF, does="queries grow with the logarithm of their position"),
    "use_normalization_before_and_after": inert(*_OFF, does="a norm follows attention and the MLP too"),
    "use_qk_norm": inert(*_OFF, does="queries and keys are normalised"),
    "use_yarn_rope": inert(*_OFF, does="positions rotate queries and keys, rescaled by YaRN"),
    "uses_rms_norm": inert(*_OFF, does="the norms do not subtract the mean"),
}
# Of initialisation, devices, tokenizers, hooks; parameters of what is refused above, such as other positional embeddings, experts and
# images; and what describes a compiled program.
_IGNORED = """
all_biases_zero attn_implementation bos bos_token_id checkpoint_index checkpoint_label_type checkpoint_value decoder_start_token_id
default_padding_side default_prepend_bos device dtype eos_token_id eps_attr from_checkpoint init_mode init_weights initializer_range
input_encoding mm_tokens_per_image model_name n_devices n_params norm_topk_prob NTK_by_parts_factor NTK_by_parts_high_freq_factor
NTK_by_parts_low_freq_factor NTK_original_ctx_len original_architecture output_decoding output_is_categorical output_is_numerical
output_labels pad_token_id program qk_norm_after_rope relative_attention_max_distance relative_attention_num_buckets residual_labels
rotary_adjacent_pairs rotary_base rotary_base_local rotary_dim rotary_interleaved_cos_sin rotary_scaling_factor seed
split_attention_weights tie_word_embeddings tokenizer_appends_eos tokenizer_name tokenizer_prepends_bos train_seq_length trust_remote_code
ungroup_grouped_query_attention use_attn_in use_attn_result use_hook_mlp_in use_hook_tokens use_split_qkv_input vision_hidden_size
vision_num_heads vision_num_layers yarn_attention_factor yarn_beta_fast yarn_beta_slow yarn_factor yarn_global_attn_only
yarn_original_max_position_embeddings yarn_truncate
"""
IGNORED = frozenset(_IGNORED.split())
_SOURCE = "The TransformerLens state dict"
_CONFIG = "TransformerLens config"


def from_transformer_lens(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    processing: Iterable[str] = (),
    dtype: DTypeLike | None = None,
) -> Transformer:
    """A model from a TransformerLens state dict, with NumPy or PyTorch tensors, and the configuration as a dict.

    **Arguments:**

    - `state_dict`: of a `HookedTransformer` (versions 1 to 3), or of a `TransformerBridge` (from 3 on) around a GPT-2 or a model of
      TransformerLens' own. Keys and values under `_W_K` and `_W_V`, as grouped attention calls them, are read where each head has its own.
    - `config`: `cfg.to_dict()` of any version from 1 to 4: the attributes of a `HookedTransformerConfig` or a `TransformerBridgeConfig`.
      One that changes nothing at the value it has is taken, such as the parameters of rotary embeddings in a model without them; one that
      asks for another computation is refused by name. The scores are divided by `attn_scale`, and -1 is `sqrt(d_head)`; the text
      `"1/sqrt(d_head)"` says the factor itself.
    - `processing`: which of `process_weights`' steps the weights went through, which neither of the two says.
    - `dtype`: of the arrays; `None` keeps the embedding's.

    Biases that are not there are zero, and mask buffers are passed over.

    **Raises:** `ValueError` for an attribute that is not known or not supported, and for tensors as `from_pretrained`.

    >>> jc.from_transformer_lens(hooked.state_dict(), hooked.cfg.to_dict())  # doctest: +SKIP
    """
    for what, given, call in (("state dict", state_dict, "state_dict()"), ("configuration", config, "cfg.to_dict()")):
        if not isinstance(given, Mapping):
            raise TypeError(
                f"from_transformer_lens: expected the {what} as a dict, {call}; got a {type(given).__name__}."
            )
    spec = _spec(_values(config))
    check_known(config, USED, ONLY, IGNORED, source=_CONFIG)
    state = {_ungrouped(name): to_numpy(name, value) for name, value in state_dict.items()}
    if _bridge.is_bridge(state):
        state = _bridge.as_hooked(state, spec, gpt2=config.get("architecture") == "GPT2LMHeadModel", source=_SOURCE)
    arrays = read(state, spec, kind="torch", source=_SOURCE)
    name = config.get("model_name") or config.get("program") or "a TransformerLens model"
    return build(spec, arrays, name=name, dtype=dtype or arrays["W_E"].dtype, processing=check_steps(processing))


def _ungrouped(name: str) -> str:
    """Finds the name of keys and values in a model where each head has its own: with one group a head, grouped attention is the same."""
    return re.sub(r"\.attn\._([Wb]_[KV])$", r".attn.\1", name)


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    values = used_values(config, USED, ONLY, _CONFIG)
    if config.get("architecture") == "TransformerLensNative":
        _check_own(values)
    if lacking := [name for name, value in values.items() if value is ...]:
        raise ValueError(f"TransformerLens config: {', '.join(lacking)} must be given.")
    return values


def _check_own(values: Mapping[str, Any]) -> None:
    """TransformerLens 4's own models have these attributes and do not compute with them (seen in 4.3)."""
    passed_over = {
        "parallel_attn_mlp": False,
        "scale_attn_by_inverse_layer_idx": False,
        "use_attn_scale": True,
        "use_local_attn": False,
    }
    for name, usual in passed_over.items():
        if bool(values[name]) != usual:
            raise ValueError(
                f"{_CONFIG}: {name} = {values[name]!r}, and a bridge's own model (architecture 'TransformerLensNative') does not compute "
                f"with it. Say what is meant: {name} = {usual}, or leave architecture out for a model that does."
            )


def _spec(values: Mapping[str, Any]) -> Spec:
    attn_only, norm, direction = values["attn_only"], values["normalization_type"], values["attention_dir"]
    if norm not in ("LN", "LNPre", None):
        raise ValueError(
            f"TransformerLens config: normalization_type {norm!r} is not supported; 'LN', 'LNPre' and None are."
        )
    if direction not in ("causal", "bidirectional"):
        raise ValueError(
            f"TransformerLens config: expected attention_dir 'causal' or 'bidirectional', got {direction!r}."
        )
    act = values["act_fn"]
    if not attn_only and act not in ACTS:
        raise ValueError(f"TransformerLens config: act_fn {act!r} is not supported; {', '.join(ACTS)} are.")
    size = lambda name: count(values, name, _CONFIG)
    d_model, d_head, d_vocab = size("d_model"), size("d_head"), size("d_vocab")
    n_heads = d_model // d_head if values["n_heads"] == -1 else size("n_heads")
    return Spec(
        architecture="transformer_lens",
        n_layers=size("n_layers"),
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=None if attn_only else 4 * d_model if values["d_mlp"] is None else size("d_mlp"),
        d_vocab=d_vocab,
        d_vocab_out=d_vocab if values["d_vocab_out"] in (-1, None) else size("d_vocab_out"),
        n_ctx=size("n_ctx"),
        act=None if attn_only else ACTS[act],
        eps=positive(values, "eps", _CONFIG),
        norm=norm,
        scales=_scales(values),
        windows=_windows(values),
        causal=direction == "causal",
        tied=False,
        biases=ATTENTION_BIASES | MLP_BIASES | {"b_U"},
        parallel=bool(values["parallel_attn_mlp"]) and not attn_only,
    )


def _scales(values: Mapping[str, Any]) -> tuple[float, ...]:
    """Says what multiplies the attention scores of each layer."""
    scale, root = values["attn_scale"], values["d_head"] ** 0.5
    if isinstance(scale, str):
        if not re.fullmatch(r"1\s*/\s*sqrt\(d_head\)", scale):
            raise ValueError(
                f"TransformerLens config: attn_scale {scale!r} is not understood; expected a number or '1/sqrt(d_head)'."
            )
        scale = root
    if not values["use_attn_scale"]:
        divisor = 1.0
    else:
        divisor = root if scale == -1 else positive({"attn_scale": scale}, "attn_scale", _CONFIG)
    by_layer = values["scale_attn_by_inverse_layer_idx"]
    return tuple(1 / (divisor * (layer + 1 if by_layer else 1)) for layer in range(values["n_layers"]))


def _windows(values: Mapping[str, Any]) -> tuple[int | None, ...]:
    n_layers, window, kinds = values["n_layers"], values["window_size"], values["attn_types"]
    if not values["use_local_attn"]:
        return (None,) * n_layers
    if values["attention_dir"] != "causal":
        raise ValueError(
            "TransformerLens config: use_local_attn is of causal attention; attention_dir is 'bidirectional'."
        )
    if window is None or kinds is None or len(kinds) != n_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(
            f"TransformerLens config: use_local_attn needs window_size, and attn_types with {n_layers} entries of 'global' or 'local'; "
            f"got {window} and {kinds}."
        )
    return tuple(window if kind == "local" else None for kind in kinds)
