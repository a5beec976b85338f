"""Models from GGUF files, as llama.cpp keeps them: their metadata as a configuration, their tensors under Hugging Face's names.

Dequantisation and the names of tensors are the package gguf's. llama.cpp stores some tensors otherwise than Hugging Face: of Llama's
queries and keys neighbouring rows rotate together, GPT-NeoX's queries, keys and values lie part by part, and the weights of Gemma's norms
have their one added.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _layouts
from ._attributes import without_ignored
from ._config import read_config
from ._gguf_file import GGUF, open_gguf
from ._rotation import Divided, Llama3
from ._spec import Spec
from .families import table_of


ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "olmo2": "olmo2",
    "gptneox": "gpt_neox",
}
# {key of the architecture: attribute of Hugging Face's configuration}
_USED = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_epsilon": "layer_norm_eps",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "use_parallel_residual": "use_parallel_residual",
}
_READ_APART = {"attention.sliding_window_pattern", "rope.dimension_count", "rope.scaling.factor", "rope.scaling.type"}
# Taken at these values alone; `None` is the length of keys.
_ONLY = {
    "attention.causal": (True,),
    "attention.value_length": None,
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.attn_factor": (1.0,),
}
_IGNORED = {
    "vocab_size",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
}
_FREQUENCIES = "rope_freqs.weight"
# Of layers that attend to a window, where Hugging Face's configurations have a number for it: blocks of the one size that differs.
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor of a GGUF file, dequantised when it is asked for as an array, and laid out as Hugging Face has it."""

    tensor: Any
    arrange: Callable[[np.ndarray], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        import gguf

        array = self.arrange(gguf.dequantize(self.tensor.data, self.tensor.tensor_type))
        return array if dtype is None else array.astype(dtype)


def read_gguf(path: str | Path, ignore: Collection[str] = ()) -> tuple[Spec, dict[str, object]]:
    """Reads the spec of a GGUF file, without the metadata that the caller has it `ignore`, and its tensors by Hugging Face's names, still
    on disk.

    **Raises:** `ImportError` without the package gguf; `ValueError` for a file that is not whole or not GGUF, another architecture, and
    metadata that are not known or ask for another computation.
    """
    file = open_gguf(path)
    spec = gguf_spec(file, ignore)
    return spec, _tensors(file, spec)


def gguf_spec(file: GGUF, ignore: Collection[str] = ()) -> Spec:
    """Says what the model in a file is."""
    kind = ARCHITECTURES.get(file.architecture)
    if kind is None:
        raise ValueError(
            f"{file.path}: general.architecture = {file.architecture!r} is not supported; {', '.join(map(repr, ARCHITECTURES))} are."
        )
    _check_known(file, ignore)
    config = _config(file)
    if kind == "llama" and "sliding_window" in config:  # llama.cpp has no other name for a Mistral
        kind = "mistral"
    spec = read_config({"model_type": kind, **config}, str(file.path))
    if spec.offset:
        spec = dataclasses.replace(spec, offset=0.0)
    if _FREQUENCIES in file.tensors:
        spec = dataclasses.replace(spec, rotations=_divided(spec, np.asarray(_plain(file.tensors[_FREQUENCIES]))))
    return spec


def _check_known(file: GGUF, ignore: Collection[str]) -> None:
    prefix = f"{file.architecture}."
    known = {prefix + name for name in (*_USED, *_READ_APART)}
    for key, value in without_ignored(file.metadata, ignore, known, str(file.path)).items():
        name = key.removeprefix(prefix)
        if name == key or name in _USED or name in _READ_APART or name in _IGNORED:
            continue
        if name not in _ONLY:
            raise ValueError(
                f"{file.path}: {key} = {value!r} is not known, and might change what the model computes. If it does not, pass "
                f"ignore_config=[{key!r}]."
            )
        allowed = (file.get("attention.key_length"),) if _ONLY[name] is None else _ONLY[name]
        if value not in allowed:
            raise ValueError(f"{file.path}: {key} = {value!r} is not supported; only {allowed[0]!r} is.")


def _config(file: GGUF) -> dict[str, Any]:
    """Gives the attributes that Hugging Face's configuration would have."""
    said = {attribute: _number(file.get(key)) for key, attribute in _USED.items() if file.get(key) is not None}
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError(f"{file.path} holds no token_embd.weight, the embedding.")
    said["vocab_size"] = int(embedding.shape[1])
    said["tie_word_embeddings"] = "output.weight" not in file.tensors
    there = lambda name: f"blk.0.{name}.bias" in file.tensors
    neox = file.architecture == "gptneox"
    if file.architecture != "qwen2":
        said["attention_bias"] = there("attn_qkv") if neox else there("attn_q")
    if file.architecture == "llama":
        said["mlp_bias"] = there("ffn_gate")
    d_head = said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"]
    said |= _rope(file, said, d_head)
    if not neox:
        said |= {"head_dim": d_head, "num_key_value_heads": said.get("num_key_value_heads")}
    if file.architecture in ("gemma2", "gemma3"):
        wide = (file.architecture, said["num_hidden_layers"]) in _SCALED_BY_WIDTH
        said["query_pre_attn_scalar"] = said["hidden_size"] // said["num_attention_heads"] if wide else d_head
        said |= _pattern(file.get("attention.sliding_window_pattern"), file.architecture)
    elif "sliding_window" in said:
        _window(file, said)
    return said


def _pattern(given: Any, architecture: str) -> dict[str, Any]:
    """Which layers attend to a window, where the file says it: one by one, or that each of so many does not."""
    if isinstance(given, list):
        return {"layer_types": ["sliding_attention" if slides else "full_attention" for slides in given]}
    return {} if given is None or architecture != "gemma3" else {"sliding_window_pattern": given}


def _window(file: GGUF, said: dict[str, Any]) -> None:
    """Keeps the window of a Mistral, and lets go of one that is as long as any prompt; ValueError for that of other layers."""
    if not 0 < said["sliding_window"] < said["max_position_embeddings"]:
        del said["sliding_window"]
    elif file.architecture != "llama":
        raise ValueError(
            f"{file.path}: {file.architecture}.attention.sliding_window = {said['sliding_window']} is not supported; only a window as "
            "long as the context is: which layers attend to it does not stand in the file."
        )
    else:
        for name in ("attention_bias", "mlp_bias"):
            if said.pop(name):
                raise ValueError(f"{file.path} has biases and a window, which no supported architecture has together.")


def _rope(file: GGUF, said: dict[str, Any], d_head: int) -> dict[str, Any]:
    turned, kind = file.get("rope.dimension_count"), file.get("rope.scaling.type")
    out: dict[str, Any] = {}
    if file.architecture == "gptneox":
        out |= {
            "rotary_pct": 1.0 if turned is None else turned / d_head,
            "rotary_emb_base": said.pop("rope_theta", 10000.0),
        }
    elif turned not in (None, d_head):
        raise ValueError(
            f"{file.path}: rope.dimension_count = {turned} is not supported; only {d_head} is, a whole head."
        )
    if kind not in (None, "none"):
        out["rope_scaling"] = {"rope_type": kind, "factor": _number(file.get("rope.scaling.factor"))}
    return out


def _number(value: Any) -> Any:
    """A float as its shortest text says it: files hold float32, in which 1e-5 is 9.999999747e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _divided(spec: Spec, by: np.ndarray) -> tuple[Any, ...]:
    """The rotations by frequencies that have divisors of their own; Llama 3's where these are its."""
    plain = spec.rotations[0]
    assert plain is not None
    frequencies = plain.frequencies
    if by.shape != frequencies.shape:
        raise ValueError(f"{_FREQUENCIES} holds {by.shape} divisors, and {frequencies.shape} frequencies turn.")
    llama3 = dataclasses.replace(plain, scaling=Llama3(float(by.max()), 1.0, 4.0, 8192))
    same = np.allclose(llama3.frequencies, frequencies / by, rtol=1e-5)
    scaling = llama3.scaling if same else Divided(tuple(map(float, by)))
    return tuple(dataclasses.replace(rotation, scaling=scaling) for rotation in spec.rotations)  # pyright: ignore[reportArgumentType]


def _plain(tensor: Any) -> Stored:
    return Stored(tensor, lambda array: array)


def _tensors(file: GGUF, spec: Spec) -> dict[str, object]:
    """Puts the tensors under Hugging Face's names; those that there is none for stay under their own."""
    import gguf

    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = gguf.get_tensor_name_map(architecture, spec.n_layers)
    table, left = table_of(spec), dict(file.tensors)
    out: dict[str, object] = {}
    for key in table.keys(spec):
        full = key.torch if key == table.head else table.prefixes[0] + key.torch
        name = names.get_name(full, try_suffixes=(".weight", ".bias"))
        if name in left:
            out[key.torch] = Stored(left.pop(name), _arrangement(file.architecture, key.ours, key.torch_axes, spec))
    left.pop(_FREQUENCIES, None)
    return out | {name: _plain(tensor) for name, tensor in left.items()}


def _arrangement(
    architecture: str, ours: tuple[str, ...], layout: str, spec: Spec
) -> Callable[[np.ndarray], np.ndarray]:
    """What undoes llama.cpp's order of a tensor's rows."""
    sizes: Mapping[str, int] = spec.sizes | {"half": 2, "pair": spec.d_head // 2}
    rearranged = lambda source, target: lambda array: _layouts.rearrange(array, source, target, sizes)
    if architecture == "gptneox" and len(ours) == 3:
        return rearranged(layout.replace("head part", "part head"), layout)
    if architecture == "llama" and ours[0].endswith(("W_Q", "W_K", "b_Q", "b_K")):
        return rearranged(layout.replace("d_head", "pair half"), layout.replace("d_head", "half pair"))
    return lambda array: array
