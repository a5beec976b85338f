"""The attributes of configurations: which are used, which must be at a value that changes nothing, which never matter.

A library's next attribute is one line in one of its tables: `inert(…)` with the values that change nothing and what it does at others, or
its name among those that never matter. What stands in no table is refused, because silence would give another model's numbers.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from .._checks import check_list


@dataclasses.dataclass(frozen=True)
class Inert:
    """An attribute that is taken only where it changes nothing.

    **Attributes:** - `values`: those that change nothing, the usual one first. - `does`: what it does at others, as the end of a
    sentence. - `also`: whether a further value changes nothing, given the whole configuration.
    """

    values: tuple[Any, ...]
    does: str
    also: Callable[[Any, Mapping[str, Any]], bool] | None = None

    def holds(self, value: Any, config: Mapping[str, Any]) -> bool:
        """Says whether `value` changes nothing."""
        return value in self.values or (self.also is not None and self.also(value, config))


def inert(*values: Any, does: str, also: Callable[[Any, Mapping[str, Any]], bool] | None = None) -> Inert:
    """A row of a table."""
    return Inert(values, does, also)


def used_values(
    config: Mapping[str, Any],
    used: Mapping[str, Any],
    only: Mapping[str, Inert],
    source: str,
    aliases: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Finds the values of the attributes that are `used`, their defaults where `config` does not say.

    **Raises:** `ValueError` for one of `only` that is at another value, and for two names of one attribute that disagree.
    """
    for attribute, row in only.items():
        if attribute in config and not row.holds(config[attribute], config):
            raise ValueError(
                f"{source}: {attribute} = {config[attribute]!r} is not supported; only {row.values[0]!r} is. It says that {row.does}."
            )
    values = dict(used)
    given: dict[str, str] = {}
    for attribute, value in config.items():
        name = (aliases or {}).get(attribute, attribute)
        if name not in used:
            continue
        if name in given and values[name] != value:
            raise ValueError(f"{source} says both {given[name]} = {values[name]!r} and {attribute} = {value!r}.")
        values[name], given[name] = value, attribute
    return values


def check_known(
    config: Mapping[str, Any], *tables: Collection[str], source: str, remedy: str = "remove {names}"
) -> None:
    """ValueError for an attribute that is in no table: to be called last, since another architecture has others. `remedy`: what to do with
    `{names}`.
    """
    unknown = {name: value for name, value in config.items() if not any(name in table for table in tables)}
    if unknown:
        said = " and ".join(f"the attribute {name} = {value!r}" for name, value in unknown.items())
        raise ValueError(
            f"{source}: {said} is not known, and might change what the model computes. If it does not, "
            f"{remedy.format(names=list(unknown))}."
        )


def without_ignored(
    config: Mapping[str, Any], ignore: Collection[str], used: Collection[str], source: str
) -> dict[str, Any]:
    """The attributes but those that the caller says change nothing. **Raises:** `ValueError` for one that the model is made of."""
    ignored = check_list("ignore_config", "names of attributes", ignore)
    if wrong := [name for name in ignored if name in used and name in config]:
        raise ValueError(f"{source}: ignore_config names {wrong[0]}, which says what the model is. Leave it out there.")
    return {name: value for name, value in config.items() if name not in ignored}


# Other names of the same functions; `gelu_fast` writes sqrt(2 / pi) with ten digits.
ACTS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Refused unless they are at a value with which they change nothing.
ONLY: dict[str, Inert] = {
    "add_cross_attention": inert(False, None, does="the blocks attend to an encoder too"),
    "auto_map": inert(None, {}, does="the model is computed by code of its own, which is not run"),
    "is_encoder_decoder": inert(False, None, does="the model has an encoder"),
    "per_layer_config": inert(None, {}, does="layers differ in what one value stands for"),
    "pruned_heads": inert({}, None, [], does="heads are taken out of the weights"),
    "quantization_config": inert(None, does="the weights are packed"),
}
# The same where positions are learned.
NO_ROTATION: dict[str, Inert] = {
    "rope_parameters": inert(None, {}, does="positions rotate queries and keys"),
    "rope_scaling": inert(None, {}, does="positions rotate queries and keys, rescaled"),
    "rope_theta": inert(None, does="positions rotate queries and keys"),
}
# Of training, generation, classification heads, bookkeeping: nothing that a forward pass to logits reads. `reorder_and_upcast_attn`
# computes half-precision attention in float32, where it does nothing; `chunk_size_feed_forward` runs the same MLP piece by piece; `n_ctx`
# is what old configurations called `n_positions`.
_IGNORED = """
_attn_implementation _attn_implementation_autoset _attn_implementation_internal _auto_class _commit_hash _configuration_file
_experts_implementation _experts_implementation_internal _flash_attn_2_enabled _from_auto _from_pipeline _name_or_path _num_labels
_output_attentions _pre_quantization_dtype architectures attention_dropout attn_implementation attn_pdrop attribute_map bad_words_ids
base_config_key base_model_ep_plan base_model_fsdp_plan base_model_pp_plan base_model_tp_plan begin_suppress_tokens bos_token_id
chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
early_stopping embd_pdrop embed_dropout encoder_no_repeat_ngram_size eos_token_id experts_implementation exponential_decay_length_penalty
finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range is_composition is_decoder
keys_to_ignore_at_inference label2id length_penalty max_length min_length model_type n_ctx n_special name_or_path neftune_noise_alpha
no_repeat_ngram_size num_beam_groups num_beams num_labels num_return_sequences output_attentions output_hidden_states output_past
output_scores pad_token_id predict_special_tokens prefix problem_type remove_invalid_values reorder_and_upcast_attn repetition_penalty
resid_dropout resid_pdrop return_dict return_dict_in_generate sep_token_id sub_configs summary_activation summary_first_dropout
summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
tokenizer_class top_k top_p torch_dtype torchscript transformers.js_config transformers_version trust_remote_code typical_p unsloth_fixed
unsloth_version use_bfloat16 use_cache use_return_dict xla_device
"""
IGNORED = frozenset(_IGNORED.split())
