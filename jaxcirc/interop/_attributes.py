"""The attributes of Hugging Face's configurations: which are used, which must have one value, which are passed over."""

from typing import Any


SUPPORTED = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Model"),
    "gpt_neo": ("GPTNeoForCausalLM", "GPTNeoModel"),
}
ACTS = {"gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}

# The attributes that are used, with transformers' defaults, which hold where a configuration does not say.
USED: dict[str, dict[str, Any]] = {
    "gpt2": {
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
    "gpt_neo": {
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
}
ALIASES = {
    "gpt2": {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    "gpt_neo": {"num_attention_heads": "num_heads", "num_hidden_layers": "num_layers"},
}
# Refused unless they have one of these values, with which they change nothing.
ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "chunk_size_feed_forward": (0, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Of training, generation, classification heads, bookkeeping: nothing that a forward pass to logits reads. `reorder_and_upcast_attn`
# computes half-precision attention in float32, where it does nothing; `n_ctx` is what old configurations called `n_positions`.
_IGNORED = """
_attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures attention_dropout
attn_implementation attn_pdrop bad_words_ids begin_suppress_tokens bos_token_id classifier_dropout
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping embd_pdrop
embed_dropout encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder
keys_to_ignore_at_inference label2id length_penalty max_length min_length model_type n_ctx n_special
no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states
output_past output_scores pad_token_id predict_special_tokens prefix problem_type remove_invalid_values
reorder_and_upcast_attn repetition_penalty resid_dropout resid_pdrop return_dict return_dict_in_generate sep_token_id
summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens
task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
transformers_version transformers.js_config typical_p use_bfloat16 use_cache
"""
IGNORED = frozenset(_IGNORED.split())
