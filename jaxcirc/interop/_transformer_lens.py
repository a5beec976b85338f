"""TransformerLens models: a state dict, and the configuration that it goes with."""

import numbers
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import DTypeLike

from ..models import Transformer
from ..saes._processing import check_steps
from . import _bridge
from ._attributes import ACTS, check_known, used_values
from ._build import build
from ._lens_attributes import IGNORED, ONLY, USED
from ._rotation import Linear, Llama3, Rotation
from ._spec import ATTENTION_BIASES, MLP_BIASES, Spec
from ._tensors import read, to_numpy
from .families._family import check_shared, count, positive
from .families._rope import check_pairs, ramp


_SOURCE = "The TransformerLens state dict"
_CONFIG = "TransformerLens config"
_NORMS = ("LN", "LNPre", "RMS", "RMSPre", None)


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
      TransformerLens' own. Keys and values may be shared, and are then called `_W_K` and `_W_V`.
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
    _check_gated(spec, arrays)
    name = config.get("model_name") or config.get("program") or "a TransformerLens model"
    return build(spec, arrays, name=name, dtype=dtype or arrays["W_E"].dtype, processing=check_steps(processing))


def _check_gated(spec: Spec, arrays: Mapping[str, np.ndarray]) -> None:
    """ValueError for a bias that TransformerLens adds behind the product with the gate, where `b_in` is before it here."""
    for layer in range(spec.n_layers) if spec.gated else ():
        if np.any(arrays[f"blocks.{layer}.mlp.b_in"]):
            raise ValueError(
                f"{_SOURCE}: blocks.{layer}.mlp.b_in is not zero, and a gated MLP adds it behind the product with the gate, which is not "
                "supported; only zeros are. Add b_in @ W_out to b_out."
            )


def _ungrouped(name: str) -> str:
    """Finds the name that keys and values have where each head has its own."""
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
    if norm not in _NORMS:
        raise ValueError(
            f"TransformerLens config: normalization_type {norm!r} is not supported; {', '.join(map(repr, _NORMS))} are."
        )
    if direction not in ("causal", "bidirectional"):
        raise ValueError(
            f"TransformerLens config: expected attention_dir 'causal' or 'bidirectional', got {direction!r}."
        )
    act = values["act_fn"]
    if not attn_only and act not in ACTS:
        raise ValueError(f"TransformerLens config: act_fn {act!r} is not supported; {', '.join(ACTS)} are.")
    size = lambda name: count(values, name, _CONFIG)
    d_model, d_head, d_vocab, n_layers = size("d_model"), size("d_head"), size("d_vocab"), size("n_layers")
    filled = {"n_heads": d_model // d_head} if values["n_heads"] == -1 else {}
    n_heads = count({**values, **filled}, "n_heads", _CONFIG)
    n_kv_heads = n_heads if values["n_key_value_heads"] is None else size("n_key_value_heads")
    check_shared(n_heads, n_kv_heads, "n_heads", "n_key_value_heads", _CONFIG)
    olmo2 = _is_olmo2(values)
    return Spec(
        architecture="transformer_lens",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
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
        gated=bool(values["gated_mlp"]) and not attn_only,
        before=not olmo2,
        behind=olmo2 or _behind(values, norm),
        qk_norm="head" if values["use_qk_norm"] else "all" if olmo2 else None,
        rotations=_rotations(values, n_layers, d_head),
        cap=_cap(values, "attn_scores_soft_cap"),
        logit_cap=_cap(values, "output_logits_soft_cap"),
    )


def _is_olmo2(values: Mapping[str, Any]) -> bool:
    """Whether TransformerLens computes the norms as OLMo 2 has them, which stands in the architecture's name alone."""
    name = values["original_architecture"]
    if name in ("OlmoeForCausalLM", "Olmo3ForCausalLM"):
        raise ValueError(
            f"{_CONFIG}: original_architecture = {name!r} is not supported; of its kin 'Olmo2ForCausalLM' is."
        )
    return name == "Olmo2ForCausalLM"


def _behind(values: Mapping[str, Any], norm: str | None) -> bool:
    there = bool(values["use_normalization_before_and_after"]) and norm is not None
    if there and norm not in ("RMS", "RMSPre"):
        raise ValueError(
            f"{_CONFIG}: use_normalization_before_and_after = True is not supported with normalization_type {norm!r}; only with 'RMS'."
        )
    return there


def _cap(values: Mapping[str, Any], name: str) -> float | None:
    """What bounds scores or logits; 0 and below, and `None`, are nothing."""
    value = values[name]
    if value is None or (isinstance(value, numbers.Real) and value <= 0):
        return None
    return positive(values, name, _CONFIG)


def _rotations(values: Mapping[str, Any], n_layers: int, d_head: int) -> tuple[Rotation, ...]:
    """How each layer's positions rotate; nothing where they are learned."""
    kind = values["positional_embedding_type"]
    if kind not in ("standard", "rotary", None):
        raise ValueError(
            f"{_CONFIG}: positional_embedding_type = {kind!r} is not supported; 'standard' and 'rotary' are."
        )
    if kind != "rotary":
        return ()
    if values["rotary_adjacent_pairs"]:
        raise ValueError(
            f"{_CONFIG}: rotary_adjacent_pairs = True is not supported; only False is. It says that neighbouring coordinates rotate "
            "together."
        )
    width = d_head if values["rotary_dim"] is None else count(values, "rotary_dim", _CONFIG)
    check_pairs(width, d_head, _CONFIG)
    local = lambda layer: bool(values["use_local_attn"]) and values["attn_types"][layer] == "local"
    return tuple(_rotation(values, width, local(layer)) for layer in range(n_layers))


def _rotation(values: Mapping[str, Any], width: int, local: bool) -> Rotation:
    base = "rotary_base_local" if local and values["rotary_base_local"] is not None else "rotary_base"
    number = lambda name: positive(values, name, _CONFIG)
    scaling = None
    if values["use_NTK_by_parts_rope"]:
        low, high = ramp(values, "NTK_by_parts_low_freq_factor", "NTK_by_parts_high_freq_factor", _CONFIG)
        scaling = Llama3(number("NTK_by_parts_factor"), low, high, count(values, "NTK_original_ctx_len", _CONFIG))
    elif not local and values["rotary_scaling_factor"] != 1:  # of layers that attend to all
        scaling = Linear(number("rotary_scaling_factor"))
    return Rotation(number(base), width, scaling)


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
    width = count(values, "window_size", _CONFIG) if "local" in kinds else None
    return tuple(width if kind == "local" else None for kind in kinds)
