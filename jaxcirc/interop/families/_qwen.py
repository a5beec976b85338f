"""Qwen 2 and 2.5, whose queries, keys and values have biases, and Qwen 3, whose queries and keys are normalised."""

from collections.abc import Mapping
from typing import Any

from .._keymaps import Table
from .._spec import ATTENTION_BIASES, Spec
from ._family import count, Family
from ._llama import TABLE
from ._rms import (
    EMBEDDING,
    FINAL,
    HEAD,
    IGNORED_RMS,
    ONLY_RMS,
    QK_NORMS,
    read_common,
    read_layer_types,
    read_windows,
    used,
    write_common,
    write_windows,
)
from ._rope import read_rotation


def _read(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    common = read_common(values, source)
    n_layers = common["n_layers"]
    rotation = read_rotation(values, source, d_head=common["d_head"])
    return common | {"rotations": (rotation,) * n_layers, "windows": _windows(values, n_layers, source)}


def _windows(values: Mapping[str, Any], n_layers: int, source: str) -> tuple[int | None, ...]:
    there = bool(values["use_sliding_window"]) and values["sliding_window"] is not None
    first = count(values, "max_window_layers", source) if values["max_window_layers"] != 0 else 0
    slides = read_layer_types(values, n_layers, [there and layer >= first for layer in range(n_layers)], source)
    if any(slides) and not there:
        raise ValueError(
            f"{source}: layer_types names layers that attend to a window, and there is none: use_sliding_window = "
            f"{values['use_sliding_window']!r}, sliding_window = {values['sliding_window']!r}."
        )
    return read_windows(values, slides, source)


def _write(spec: Spec) -> dict[str, Any]:
    windows = write_windows(spec)
    there = windows["sliding_window"] is not None
    first = next((layer for layer, window in enumerate(spec.windows) if window is not None), spec.n_layers)
    return write_common(spec) | windows | {"use_sliding_window": there, "max_window_layers": first}


def _read_qwen2(values: Mapping[str, Any], source: str) -> Spec:
    return Spec(architecture="qwen2", biases=ATTENTION_BIASES - {"attn.b_O"}, **_read(values, source))


def _read_qwen3(values: Mapping[str, Any], source: str) -> Spec:
    biases = ATTENTION_BIASES if values["attention_bias"] else frozenset()
    return Spec(architecture="qwen3", qk_norm="head", biases=biases, **_read(values, source))


_USED = used(
    vocab_size=151936,
    intermediate_size=22016,
    num_key_value_heads=32,
    max_position_embeddings=32768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
)
QWEN2 = Family(
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    used=_USED,
    only=ONLY_RMS,
    ignored=IGNORED_RMS,
    read=_read_qwen2,
    write=_write,
    table=TABLE,
)
QWEN3 = Family(
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    used=_USED | {"head_dim": 128, "attention_bias": False},
    only=ONLY_RMS,
    ignored=IGNORED_RMS,
    read=_read_qwen3,
    write=lambda spec: _write(spec) | {"attention_bias": bool(spec.biases)},
    table=Table(
        EMBEDDING,
        HEAD,
        (FINAL,),
        (*TABLE.block, *QK_NORMS),
        prefixes=("model.",),
        ignored=TABLE.ignored,
    ),
)
