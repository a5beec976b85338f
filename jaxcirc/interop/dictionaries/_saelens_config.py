"""What a SAELens `cfg.json` of any version, 3 to 6, says: one shape for all, every attribute handled, ignored by name, or refused.

Reference: github.com/jbloomAus/SAELens (its defaults for configurations from before version 6 are these).
"""

import dataclasses
import re
from collections.abc import Collection

from ...saes._processing import STEPS
from ._releases import kwargs_of
from ._tensors import listed, warn


ARCHITECTURES = ("standard", "gated", "jumprelu", "topk", "transcoder", "skip_transcoder", "jumprelu_transcoder")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_STEPS = dict(zip(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), STEPS, strict=True))
# From this version on the models are loaded without the processing that is not asked for; before, with all of it by default.
_UNPROCESSED_SINCE = (3, 19, 2)
_HANDLED = """
architecture d_in d_sae d_out k rescale_acts_by_decoder_norm apply_b_dec_to_input normalize_activations reshape_activations
activation_fn activation_fn_kwargs finetuning_scaling_factor hook_name hook_name_out hook_head_index hook_head_index_out
model_from_pretrained_kwargs sae_lens_version sae_lens_training_version metadata
""".split()
# Of how it was trained, stored or run: nothing that a trained dictionary computes depends on these.
_IGNORED = """
act_store_device adam_beta1 adam_beta2 autocast autocast_data autocast_lm aux_loss_coefficient auxk_alpha b_dec_init_method
begin_batch_token begin_sequence_token cached_activations_path checkpoint_path column_name compile_llm compile_sae context_size d_vocab
dataset_path dataset_trust_remote_code dead_feature_estimation_method dead_feature_threshold dead_feature_window decoder_heuristic_init
decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device disable_concat_sequences dtype eval_batch_size_prompts
eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_reinit_scale feature_sampling_method feature_sampling_window
finetuning_method finetuning_tokens from_pretrained_path ghost_grad_loss hook_eval hook_layer hook_layer_out hook_point_layer
init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold l0_coefficient l0_lambda
l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb log_optimizer_state_to_wandb
log_to_wandb logger lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_batch_size model_class_name model_kwargs
model_name mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id noise_scale
normalize_sae_decoder prepend_bos resample_batches resume run_name sae_compilation_mode scale_sparsity_penalty_by_decoder_norm seed
seqpos_slice sparsity store_batch_size store_batch_size_prompts streaming tokens_per_buffer total_training_steps total_training_tokens
train_batch_size train_batch_size_tokens training_tokens use_cached_activations use_error_term use_ghost_grads verbose wandb_entity
wandb_id wandb_log_frequency wandb_project
""".split()


@dataclasses.dataclass(frozen=True)
class SaeLensConfig:
    """What a configuration says of what its dictionary computes, where, and of which model."""

    architecture: str
    d_in: int | None
    d_sae: int | None
    d_out: int | None
    k: int | None
    rescale_acts_by_decoder_norm: bool
    apply_b_dec_to_input: bool
    normalize_activations: str
    activation_fn: str
    finetuning_scaling_factor: bool
    hook_name: str | None
    hook_name_out: str | None
    processing: tuple[str, ...] | None


def parse(config: dict, source: str, repository: str, ignore: Collection[str]) -> SaeLensConfig:
    """The configuration of any version.

    **Raises:** `ValueError` for an architecture or an attribute that is not supported, naming it.
    """
    config = {_RENAMED.get(name, name): value for name, value in config.items()}
    metadata = config.get("metadata") or {}
    _check_known(config, source, ignore)
    if not isinstance(metadata, dict):
        raise ValueError(f"{source}: `metadata` must be an object, got a {type(metadata).__name__}.")
    config = {**{_RENAMED.get(name, name): value for name, value in metadata.items()}, **config}
    fn_kwargs = config.get("activation_fn_kwargs") or {}
    activation = config.get("activation_fn") or "relu"
    architecture = config.get("architecture") or "standard"
    if activation == "topk" and architecture == "standard":
        architecture, activation = "topk", "relu"
    k = config.get("k", fn_kwargs.get("k"))
    hook = config.get("hook_name")
    _check_supported(config, architecture, activation, k, hook, source)
    return SaeLensConfig(
        architecture=architecture,
        d_in=config.get("d_in"),
        d_sae=config.get("d_sae"),
        d_out=config.get("d_out"),
        k=None if k is None else int(k),
        rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        normalize_activations=_normalisation(config.get("normalize_activations"), source),
        activation_fn=activation,
        finetuning_scaling_factor=bool(config.get("finetuning_scaling_factor", False)),
        hook_name=hook,
        hook_name_out=config.get("hook_name_out"),
        processing=_processing(config, source, repository),
    )


def _check_known(config: dict, source: str, ignore: Collection[str]) -> None:
    unknown = [name for name in config if name not in _HANDLED and name not in _IGNORED and name not in ignore]
    if unknown:
        raise ValueError(
            f"{source}: the attribute {listed(unknown[:5])} of cfg.json is not supported. If it changes nothing that the trained "
            f"dictionary computes, pass ignore_config={unknown!r}."
        )


def _check_supported(
    config: dict, architecture: str, activation: str, k: object, hook: str | None, source: str
) -> None:
    if architecture not in ARCHITECTURES:
        hint = (
            " SAELens saves a trained one as jumprelu: is this a checkpoint of the training?"
            if "batchtopk" in architecture
            else ""
        )
        raise ValueError(
            f"{source}: architecture {architecture!r} is not supported. Supported are {', '.join(ARCHITECTURES)}.{hint}"
        )
    known = (
        ("relu", "tanh-relu")
        if architecture == "standard"
        else ("relu", "topk")
        if architecture == "topk"
        else ("relu",)
    )
    if activation not in known:
        raise ValueError(
            f"{source}: activation_fn {activation!r} is not supported for {architecture}. Supported: {', '.join(known)}."
        )
    if architecture == "topk" and k is None:
        raise ValueError(f"{source}: a topk dictionary without `k` in cfg.json.")
    for name in ("hook_head_index", "hook_head_index_out"):
        if config.get(name) is not None:
            raise ValueError(f"{source}: `{name}` is {config[name]}, and a dictionary of one head is not supported.")
    reshape = config.get("reshape_activations", "hook_z" if "hook_z" in (hook or "") else "none")
    if reshape != ("hook_z" if "hook_z" in (hook or "") else "none"):
        raise ValueError(
            f"{source}: reshape_activations is {reshape!r} at {hook}. Supported is 'hook_z', all heads as one vector, at hook_z, and "
            "'none' elsewhere."
        )


def _normalisation(value: object, source: str) -> str:
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    name = "none" if value is None else str(value)
    if name not in NORMALISATIONS:
        raise ValueError(
            f"{source}: normalize_activations {name!r} is not supported. Supported are {', '.join(NORMALISATIONS)}."
        )
    return name


def _processing(config: dict, source: str, repository: str) -> tuple[str, ...] | None:
    """The steps of the model's loading: what was asked for, over the defaults of the version that trained."""
    known, asked = kwargs_of(repository), config.get("model_from_pretrained_kwargs")
    if known is not None:
        return tuple(step for name, step in _STEPS.items() if known.get(name, False))
    if asked is None:
        return None
    if asked.get("refactor_factored_attn_matrices"):
        warn(f"{source}: its model had its attention matrices refactored, which jc.process_weights does not do.")
    version = config.get("sae_lens_training_version") or config.get("sae_lens_version")
    numbers = tuple(int(n) for n in re.findall(r"\d+", str(version))[:3]) if version else _UNPROCESSED_SINCE
    return tuple(step for name, step in _STEPS.items() if asked.get(name, numbers < _UNPROCESSED_SINCE))
