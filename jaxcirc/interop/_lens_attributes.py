"""The attributes of TransformerLens' configurations: which are used, which are taken at some values alone, which never matter."""

from collections.abc import Mapping
from typing import Any

from ._attributes import Inert, inert


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
    "n_key_value_heads": None,
    "gated_mlp": False,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
    "original_architecture": None,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "positional_embedding_type": "standard",
    "rotary_dim": None,
    "rotary_base": 10000,
    "rotary_base_local": None,
    "rotary_scaling_factor": 1.0,
    "rotary_adjacent_pairs": False,
    "use_NTK_by_parts_rope": False,
    "NTK_by_parts_factor": 8.0,
    "NTK_by_parts_low_freq_factor": 1.0,
    "NTK_by_parts_high_freq_factor": 4.0,
    "NTK_original_ctx_len": 8192,
}
_OFF = (False, None)


def _n_heads(config: Mapping[str, Any]) -> Any:
    """As many as fill `d_model` where they are not given, which -1 says too."""
    given = config.get("n_heads", -1)
    return given if given != -1 else config.get("d_model", 0) // max(config.get("d_head", 1), 1)


def _all_are(value: Any, expected: Any) -> bool:
    """Whether every layer has what the configuration says for all of them."""
    return isinstance(value, list | tuple) and all(each == expected for each in value)


def _folded(value: Any, config: Mapping[str, Any]) -> bool:
    return config.get("normalization_type", "LN") in ("LNPre", "RMSPre", None)


def _not_centred(value: Any, config: Mapping[str, Any]) -> bool:
    return config.get("normalization_type", "LN") in ("RMS", "RMSPre", None)


# Refused unless they are at a value with which they change nothing.
ONLY: dict[str, Inert] = {
    "architecture": inert(
        "GPT2LMHeadModel",
        "TransformerLensNative",
        None,
        does="a bridge holds another model, whose scores and masks stand in no attribute; load it with jc.from_pretrained or jc.from_torch",
        also=lambda value, config: value == "GPTNeoForCausalLM" and config.get("use_attn_scale") is False,
    ),
    "clip_qkv": inert(None, does="queries, keys and values are cut off at that size"),
    "experts_per_token": inert(None, 0, does="the MLP is a mixture of experts"),
    "final_rms": inert(
        *_OFF,
        does="the last norm does not subtract the mean",
        also=_not_centred,
    ),
    "is_audio_model": inert(*_OFF, does="the model hears"),
    "is_multimodal": inert(*_OFF, does="the model reads more than tokens"),
    "is_stateful": inert(*_OFF, does="the model carries a state along and has no attention"),
    "is_visual_model": inert(*_OFF, does="the model sees"),
    "layer_norm_folding": inert(
        *_OFF, does="the norms have no weights any more: normalization_type is 'LNPre' then", also=_folded
    ),
    "load_in_4bit": inert(*_OFF, does="the weights are packed"),
    "num_experts": inert(None, 0, does="the MLP is a mixture of experts"),
    "per_layer_head_dim": inert(
        None,
        does="heads are of another width in each layer",
        also=lambda value, config: _all_are(value, config.get("d_head")),
    ),
    "per_layer_num_key_value_heads": inert(
        None,
        does="layers differ in how many heads share keys and values",
        also=lambda value, config: _all_are(value, config.get("n_key_value_heads") or _n_heads(config)),
    ),
    "post_embedding_ln": inert(*_OFF, does="a norm follows the embedding"),
    "quantization_method": inert(None, does="the weights are packed"),
    "rmsnorm_uses_offset": inert(*_OFF, does="the norms multiply by one plus their weight"),
    "scale_embedding": inert(*_OFF, does="token embeddings are multiplied by sqrt(d_model)"),
    "use_attention_sinks": inert(*_OFF, does="each head attends to a sink beside the positions"),
    "use_dynamic_ntk_rope": inert(*_OFF, does="positions rotate queries and keys, rescaled by the length"),
    "use_logn_attn": inert(*_OFF, does="queries grow with the logarithm of their position"),
    "use_yarn_rope": inert(*_OFF, does="positions rotate queries and keys, rescaled by YaRN"),
    "uses_rms_norm": inert(*_OFF, does="the norms do not subtract the mean", also=_not_centred),
}
# Of initialisation, devices, tokenizers, hooks; parameters of what is refused above, such as other positional embeddings, experts and
# images; and what describes a compiled program.
_IGNORED = """
all_biases_zero attn_implementation bos bos_token_id checkpoint_index checkpoint_label_type checkpoint_value decoder_start_token_id
default_padding_side default_prepend_bos device dtype eos_token_id eps_attr from_checkpoint init_mode init_weights initializer_range
input_encoding mm_tokens_per_image model_name n_devices n_params norm_topk_prob output_decoding output_is_categorical output_is_numerical
output_labels pad_token_id program qk_norm_after_rope relative_attention_max_distance relative_attention_num_buckets residual_labels
rotary_interleaved_cos_sin seed split_attention_weights tie_word_embeddings tokenizer_appends_eos tokenizer_name tokenizer_prepends_bos
train_seq_length trust_remote_code ungroup_grouped_query_attention use_attn_in use_attn_result use_hook_mlp_in use_hook_tokens
use_split_qkv_input vision_hidden_size vision_num_heads vision_num_layers yarn_attention_factor yarn_beta_fast yarn_beta_slow yarn_factor
yarn_global_attn_only yarn_original_max_position_embeddings yarn_truncate
"""
IGNORED = frozenset(_IGNORED.split())
