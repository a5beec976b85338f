"""TransformerLens models: a state dict, and the configuration that it goes with."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from jaxtyping import DTypeLike

from ..models import Transformer
from ..saes._processing import check_steps
from ._attributes import ACTS
from ._build import build
from ._config import count
from ._spec import Spec
from ._tensors import read, to_numpy


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
# Refused unless they have one of these values, with which they change nothing.
ONLY: dict[str, tuple[Any, ...]] = {
    "attn_scores_soft_cap": (-1.0, None),
    "final_rms": (False, None),
    "gated_mlp": (False, None),
    "load_in_4bit": (False, None),
    "n_key_value_heads": (None,),
    "num_experts": (None,),
    "experts_per_token": (None,),
    "output_logits_soft_cap": (-1.0, None),
    "positional_embedding_type": ("standard", None),
    "post_embedding_ln": (False, None),
    "use_NTK_by_parts_rope": (False, None),
    "use_normalization_before_and_after": (False, None),
    "use_qk_norm": (False, None),
}
# Of initialisation, devices, tokenizers, hooks, of other positional embeddings, and what describes a compiled program.
_IGNORED = """
NTK_by_parts_factor NTK_by_parts_high_freq_factor NTK_by_parts_low_freq_factor NTK_original_ctx_len all_biases_zero bos checkpoint_index
checkpoint_label_type checkpoint_value decoder_start_token_id default_prepend_bos device dtype from_checkpoint init_mode init_weights
initializer_range input_encoding model_name n_devices n_params original_architecture output_decoding output_is_categorical output_labels
output_is_numerical program relative_attention_max_distance relative_attention_num_buckets residual_labels rotary_adjacent_pairs rotary_base
rotary_base_local rotary_dim seed tie_word_embeddings tokenizer_name tokenizer_prepends_bos trust_remote_code
ungroup_grouped_query_attention use_attn_in use_attn_result use_hook_mlp_in use_hook_tokens use_split_qkv_input
"""
IGNORED = frozenset(_IGNORED.split())
_SOURCE = "The TransformerLens state dict"


def from_transformer_lens(
    state_dict: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    processing: Iterable[str] = (),
    dtype: DTypeLike | None = None,
) -> Transformer:
    """A model from a TransformerLens state dict, with NumPy or PyTorch tensors, and the configuration as a dict.

    **Arguments:**

    - `config`: the attributes of a `HookedTransformerConfig`. The scores are divided by `attn_scale`, and -1 is `sqrt(d_head)`; the text
      `"1/sqrt(d_head)"` says the factor itself.
    - `processing`: which of `process_weights`' steps the weights went through, which neither of the two says.
    - `dtype`: of the arrays; `None` keeps the embedding's.

    Biases that are not there are zero, and mask buffers are passed over.

    **Raises:** `ValueError` for an attribute that is not known or not supported, and for tensors as `from_pretrained`.

    >>> jc.from_transformer_lens(hooked.state_dict(), hooked.cfg.to_dict())  # doctest: +SKIP
    """
    spec = _spec(_values(config))
    arrays = read(
        {name: to_numpy(name, value) for name, value in state_dict.items()}, spec, kind="torch", source=_SOURCE
    )
    name = config.get("model_name") or config.get("program") or "a TransformerLens model"
    return build(spec, arrays, name=name, dtype=dtype or arrays["W_E"].dtype, processing=check_steps(processing))


def _values(config: Mapping[str, Any]) -> dict[str, Any]:
    values = dict(USED)
    for name, value in config.items():
        if name in USED:
            values[name] = value
        elif name in ONLY:
            if value not in ONLY[name]:
                raise ValueError(
                    f"TransformerLens config: {name} = {value!r} is not supported; only {ONLY[name][0]!r} is."
                )
        elif name not in IGNORED:
            raise ValueError(
                f"TransformerLens config: the attribute {name} = {value!r} is not known, and might change what the model computes. "
                "If it does not, remove it."
            )
    if lacking := [name for name, value in values.items() if value is ...]:
        raise ValueError(f"TransformerLens config: {', '.join(lacking)} must be given.")
    return values


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
    size = lambda name: count(values, name, "TransformerLens config")
    d_model, d_head, d_vocab = size("d_model"), size("d_head"), size("d_vocab")
    return Spec(
        architecture="transformer_lens",
        n_layers=size("n_layers"),
        n_heads=d_model // d_head if values["n_heads"] == -1 else size("n_heads"),
        d_head=d_head,
        d_model=d_model,
        d_mlp=None if attn_only else 4 * d_model if values["d_mlp"] is None else size("d_mlp"),
        d_vocab=d_vocab,
        d_vocab_out=d_vocab if values["d_vocab_out"] in (-1, None) else size("d_vocab_out"),
        n_ctx=size("n_ctx"),
        act=None if attn_only else ACTS[act],
        eps=float(values["eps"]),
        norm=norm,
        scales=_scales(values),
        windows=_windows(values),
        causal=direction == "causal",
        tied=False,
        parallel=bool(values["parallel_attn_mlp"]) and not attn_only,
    )


def _scales(values: Mapping[str, Any]) -> tuple[float, ...]:
    """What multiplies the attention scores of each layer."""
    scale, root = values["attn_scale"], values["d_head"] ** 0.5
    if isinstance(scale, str):
        if not re.fullmatch(r"1\s*/\s*sqrt\(d_head\)", scale):
            raise ValueError(
                f"TransformerLens config: attn_scale {scale!r} is not understood; expected a number or '1/sqrt(d_head)'."
            )
        scale = root
    divisor = 1.0 if not values["use_attn_scale"] else root if scale == -1 else float(scale)
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
