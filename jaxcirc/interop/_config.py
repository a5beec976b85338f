"""Hugging Face's config.json to a `Spec` and back: every attribute is used, ignored by name, or refused by name.

What is refused would change the computation: silence about it would give another model's numbers.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

from ._attributes import ACTS, ALIASES, check_known, IGNORED, ONLY, SUPPORTED, USED, used_values
from ._spec import Spec


def read_config(config: Mapping[str, Any], source: str) -> Spec:
    """Reads the spec of a Hugging Face configuration.

    **Raises:** `ValueError` for an architecture that is not supported, an attribute that is not known, or one that asks for another
    computation, each by name.
    """
    kind = _architecture(config, source)
    values = _values(config, kind, source)
    return _gpt2(values, source) if kind == "gpt2" else _gpt_neo(values, source)


def write_config(spec: Spec) -> dict[str, Any]:
    """The inverse of `read_config`, for a spec that a Hugging Face layout can hold."""
    common = {
        "architectures": [SUPPORTED[spec.architecture][0]],
        "model_type": spec.architecture,
        "activation_function": spec.act,
        "layer_norm_epsilon": spec.eps,
        "tie_word_embeddings": spec.tied,
        "vocab_size": spec.d_vocab,
        # Else transformers assumes GPT-2's own ids.
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if spec.architecture == "gpt2":
        scaled, by_layer = gpt2_scaling(spec)
        return common | {
            "n_layer": spec.n_layers,
            "n_head": spec.n_heads,
            "n_embd": spec.d_model,
            "n_inner": spec.d_mlp,
            "n_positions": spec.n_ctx,
            "scale_attn_weights": scaled,
            "scale_attn_by_inverse_layer_idx": by_layer,
        }
    kinds = ["global" if window is None else "local" for window in spec.windows]
    return common | {
        "num_layers": spec.n_layers,
        "num_heads": spec.n_heads,
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_mlp,
        "max_position_embeddings": spec.n_ctx,
        "window_size": next((window for window in spec.windows if window is not None), 256),
        "attention_layers": kinds,
        "attention_types": [[kinds, 1]],
    }


def gpt2_scaling(spec: Spec) -> tuple[bool, bool]:
    """Finds (`scale_attn_weights`, `scale_attn_by_inverse_layer_idx`) that give these score scales; `ValueError` if none do."""
    for scaled in (True, False):
        for by_layer in (False, True):
            wanted = _scales(spec.n_layers, spec.d_head, scaled, by_layer)
            if all(abs(a - b) <= spec.precision * b for a, b in zip(spec.scales, wanted, strict=True)):
                return scaled, by_layer
    raise ValueError(
        f"GPT-2's configuration cannot say that attention scores are multiplied by {spec.scales}, layer by layer."
    )


def _scales(n_layers: int, d_head: int, scaled: bool, by_layer: bool) -> tuple[float, ...]:
    base = d_head**-0.5 if scaled else 1.0
    return tuple(base / (layer + 1) if by_layer else base for layer in range(n_layers))


def _architecture(config: Mapping[str, Any], source: str) -> str:
    classes = config.get("architectures") or []
    kind = config.get("model_type") or next(
        (kind for kind, known in SUPPORTED.items() if set(classes) & set(known)), None
    )
    known = ", ".join(name for names in SUPPORTED.values() for name in names)
    if kind not in SUPPORTED or not set(classes) <= set(SUPPORTED[kind]):
        raise ValueError(
            f"{source} is a {', '.join(classes) or kind or 'model of no named architecture'}; supported are {known}."
        )
    return kind


def _values(config: Mapping[str, Any], kind: str, source: str) -> dict[str, Any]:
    source = f"{source}: config.json"
    values = used_values(config, USED[kind], ONLY, source, ALIASES[kind])
    check_known(config, USED[kind], ALIASES[kind], ONLY, IGNORED, source=source)
    return values


def count(values: Mapping[str, Any], name: str, source: str) -> int:
    """The whole number under `name`, from 1."""
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{source}: the configuration gives {name} = {value!r}; expected a whole number from 1.")
    return value


def positive(values: Mapping[str, Any], name: str, source: str) -> float:
    """The number above 0 under `name`."""
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < float(value) < math.inf:
        raise ValueError(f"{source}: the configuration gives {name} = {value!r}; expected a number above 0.")
    return float(value)


def _common(values: Mapping[str, Any], source: str, *, heads: str, width: str, inner: str) -> dict[str, Any]:
    n_heads, d_model, d_vocab = (count(values, name, source) for name in (heads, width, "vocab_size"))
    if d_model % n_heads:
        raise ValueError(f"{source}: config.json gives {width} = {d_model}, which {heads} = {n_heads} does not divide.")
    act = values["activation_function"]
    if act not in ACTS:
        raise ValueError(f"{source}: activation_function {act!r} is not supported; {', '.join(ACTS)} are.")
    return {
        "n_heads": n_heads,
        "d_head": d_model // n_heads,
        "d_model": d_model,
        "d_mlp": 4 * d_model if values[inner] is None else count(values, inner, source),
        "d_vocab": d_vocab,
        "d_vocab_out": d_vocab,
        "act": ACTS[act],
        "eps": positive(values, "layer_norm_epsilon", source),
        "norm": "LN",
        "causal": True,
        "tied": bool(values["tie_word_embeddings"]),
    }


def _gpt2(values: Mapping[str, Any], source: str) -> Spec:
    common = _common(values, source, heads="n_head", width="n_embd", inner="n_inner")
    n_layers = count(values, "n_layer", source)
    scaling = bool(values["scale_attn_weights"]), bool(values["scale_attn_by_inverse_layer_idx"])
    return Spec(
        architecture="gpt2",
        n_layers=n_layers,
        n_ctx=count(values, "n_positions", source),
        scales=_scales(n_layers, common["d_head"], *scaling),
        windows=(None,) * n_layers,
        **common,
    )


def _gpt_neo(values: Mapping[str, Any], source: str) -> Spec:
    n_layers = count(values, "num_layers", source)
    kinds = _attention_kinds(values, n_layers, source)
    window = count(values, "window_size", source)
    return Spec(
        architecture="gpt_neo",
        n_layers=n_layers,
        n_ctx=count(values, "max_position_embeddings", source),
        scales=(1.0,) * n_layers,  # GPT-Neo does not divide by sqrt(d_head)
        windows=tuple(window if kind == "local" else None for kind in kinds),
        **_common(values, source, heads="num_heads", width="hidden_size", inner="intermediate_size"),
    )


def _attention_kinds(values: Mapping[str, Any], n_layers: int, source: str) -> list[str]:
    types, layers = values["attention_types"], values["attention_layers"]
    if types is None and layers is None:
        types = [[["global", "local"], 12]]
    try:
        expanded = [kind for group, times in types or () for _ in range(times) for kind in group]
    except (TypeError, ValueError):
        raise ValueError(
            f"{source}: attention_types = {types!r} is not understood; expected [[kinds, times], …], such as [[['global', 'local'], 6]]."
        ) from None
    if layers is not None and types is not None and list(layers) != expanded:
        raise ValueError(
            f"{source}: config.json gives attention_layers {layers}, and attention_types that say {expanded}."
        )
    kinds = expanded if layers is None else list(layers)
    if len(kinds) != n_layers or not set(kinds) <= {"global", "local"}:
        raise ValueError(
            f"{source}: expected {n_layers} entries of 'global' or 'local', one a layer, in attention_layers or "
            f"attention_types; got {kinds}."
        )
    return kinds
