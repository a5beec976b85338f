"""Which attributes of a dictionary's configuration are of its training, its data or its bookkeeping: nothing that a trained dictionary
computes depends on them.

Libraries rename and add such attributes from version to version, so besides the names that are known there are forms of names: what ends
in `_lr` or begins with `wandb_` is passed over, whatever it is.
"""

import re


# Of SAELens from its predecessor sae_training to version 6, of sparsify, and of the programs around them.
_NAMES = """
act_store_device activations_mixing_fraction autocast autocast_data autocast_lm autocast_sae aux_loss_coefficient auxk_alpha
b_dec_init_method begin_batch_token begin_sequence_token column_name compile_llm compile_sae context_size d_vocab
dataset_trust_remote_code decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init device
disable_concat_sequences distribute_modules dtype exclude_special_tokens exclude_tokens expansion_factor feature_reinit_scale
feature_sampling_method feature_sampling_window finetune finetuning_method from_pretrained_path grad_acc_steps gradient_clipping hook_eval
hook_layer hook_layer_out hookpoints init_encoder_as_decoder_transpose init_seeds is_dataset_tokenized jumprelu_bandwidth
jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_lambda layer_stride layers llm_compilation_mode
log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb log_weights_to_wandb logger loss_fn lp_norm lr matryoshka_widths
max_seq_len micro_acc_steps model_class_name model_kwargs model_name mse_loss_normalization n_batches_for_norm_estimate
n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id noise_scale normalize_sae_decoder
optimizer out_hook_point_layer prefetch_llm_batches prepend_bos resume run_name sae_compilation_mode save_best save_dir
save_final_checkpoint scale_sparsity_penalty_by_decoder_norm seed seqpos_slice sequence_separator_token sparsity store_batch_size_prompts
streaming subset_size target_l0 topk_threshold_lr trust_remote_code use_cached_activations use_chat_formatting use_error_term
use_ghost_grads use_matryoshka_aux_loss use_sparse_activations verbose wandb_log_frequency
"""
_STARTS = "adam_ cached_ checkpoint_ dataset_ dead_feature_ eval_ ghost_ l0_warm_up_ l1_warm_up_ lr_ resample_ train_ training_ wandb_"
_ENDS = """
_alpha _batch_size _betas _checkpoint _coefficient _dataset _decay _device _every _init_threshold _interval _loss _lr _optimizer _path
_penalty _samples _scheduler _seed _steps _tokens _tokens_per_buffer _warmup _wandb
"""
_FORMS = re.compile(f"({'|'.join(_STARTS.split())}).+|.+({'|'.join(_ENDS.split())})|tokens_per_.+")
NAMES = frozenset(_NAMES.split())


def is_of_training(name: str) -> bool:
    """Says whether an attribute of this name changes nothing that a trained dictionary computes."""
    return name in NAMES or _FORMS.fullmatch(name) is not None
