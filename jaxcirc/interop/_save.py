"""Models to checkpoints, in Hugging Face's names and layouts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from .._files import writing_folder
from ..models import Transformer
from ._build import arrays_of, spec_of
from ._config import gpt2_scaling, write_config
from ._keymaps import HEAD
from ._spec import Spec
from ._tensors import write


def to_torch_state_dict(model: Transformer) -> dict[str, np.ndarray]:
    """NumPy arrays under Hugging Face names, as `GPT2LMHeadModel` or `GPTNeoForCausalLM` call them: bit for bit the model's own.

    A tied unembedding is there under its own name too, as in PyTorch's `state_dict()`.

    **Raises:** `ValueError` that names what the layout cannot hold: folded norms, an unembedding bias, another vocabulary at the output,
    attention in both directions, score scales of its own, and in GPT-Neo biases of queries, keys and values.

    >>> jc.to_torch_state_dict(model)["transformer.h.0.attn.c_attn.weight"].shape
    (128, 384)
    """
    return _state_dict(model, hugging_face_spec(model), with_tied_head=True)


def save_pretrained(model: Transformer, folder: str | Path, tokenizer: Any = None) -> None:
    """Writes `config.json`, `model.safetensors` and the tokenizer's files to `folder`, which transformers and `from_pretrained` read.

    Everything is written beside `folder` first and renamed at the end. In a folder that is a checkpoint already these files are
    replaced, and others stay; any other folder is refused.

    >>> jc.interop.save_pretrained(model, "copy", tokenizer)
    >>> jc.from_pretrained("copy").name
    'copy'
    """
    spec = hugging_face_spec(model)
    config = write_config(spec)
    if tokenizer is not None:
        config |= {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    with writing_folder(folder, marker="config.json", what="checkpoint") as aside:
        (aside / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        tensors = _state_dict(model, spec, with_tied_head=False)
        safetensors.numpy.save_file(tensors, aside / "model.safetensors", metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)


def _state_dict(model: Transformer, spec: Spec, *, with_tied_head: bool) -> dict[str, np.ndarray]:
    full = dataclasses.replace(spec, tied=spec.tied and not with_tied_head)
    named = write(arrays_of(model), full, kind="torch")
    return {name if name == HEAD.torch else f"transformer.{name}": array for name, array in named.items()}


def hugging_face_spec(model: Transformer) -> Spec:
    """Finds the spec under which `model` can be written; `ValueError` that names what no Hugging Face layout holds."""
    spec = spec_of(model)
    if spec.architecture == "transformer_lens":
        local = any(window is not None for window in spec.windows)
        spec = dataclasses.replace(spec, architecture="gpt_neo" if local else "gpt2")
    problems = _problems(model, spec)
    if problems:
        raise ValueError(f"Hugging Face's {spec.architecture} layout cannot hold {model.name}: {'; '.join(problems)}.")
    return spec


def _problems(model: Transformer, spec: Spec) -> list[str]:
    features = {
        "its norms have no weights (fold_layer_norm)": spec.norm == "LNPre",
        "it has no norms": spec.norm is None,
        "it has attention only": spec.act is None,
        "its MLPs are beside attention": spec.parallel,
        "b_U is not zero": bool(np.any(np.asarray(model.b_U))),
        "its attention is in both directions": not spec.causal,
        f"d_head {spec.d_head} times {spec.n_heads} heads is not d_model {spec.d_model}": spec.d_head * spec.n_heads
        != spec.d_model,
        f"it reads {spec.d_vocab} tokens and writes {spec.d_vocab_out}": spec.d_vocab != spec.d_vocab_out,
    }
    problems = [what for what, there in features.items() if there]
    if spec.architecture == "gpt2":
        return problems + _gpt2_problems(spec)
    return problems + _gpt_neo_problems(model, spec)


def _gpt2_problems(spec: Spec) -> list[str]:
    problems = ["its attention is local"] if any(window is not None for window in spec.windows) else []
    try:
        gpt2_scaling(spec)
    except ValueError:
        problems.append(f"its attention scores are multiplied by {spec.scales}")
    return problems


def _gpt_neo_problems(model: Transformer, spec: Spec) -> list[str]:
    attentions = [block.attn for block in model.blocks]
    biased = any(np.any(np.asarray(b)) for attn in attentions for b in (attn.b_Q, attn.b_K, attn.b_V))
    problems = ["queries, keys or values have biases that are not zero"] if biased else []
    if any(scale != 1 for scale in spec.scales):
        problems.append(f"its attention scores are multiplied by {spec.scales}, not by 1")
    if len({window for window in spec.windows if window is not None}) > 1:
        problems.append(f"its local windows {spec.windows} differ")
    return problems
