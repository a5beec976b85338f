"""Models to checkpoints, in Hugging Face's names and layouts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from .._files import writing_folder
from ..models import Transformer
from ._as_written import as_written
from ._build import arrays_of, spec_of
from ._config import write_config
from ._spec import Spec
from ._tensors import write
from .families import FAMILIES, table_of


def to_torch_state_dict(model: Transformer) -> dict[str, np.ndarray]:
    """NumPy arrays under Hugging Face names, as files of the model's architecture hold them: bit for bit the model's own.

    A tied unembedding is there under its own name too, as in PyTorch's `state_dict()`. Of models that come from elsewhere, such as
    TransformerLens, the first architecture is taken that can say what they compute.

    **Raises:** `ValueError` that names what the layout cannot hold: folded norms, an unembedding bias, another vocabulary at the output,
    attention in both directions, score scales of its own, biases that there is no name for.

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
    named, table = write(arrays_of(model), full, kind="torch"), table_of(spec)
    return {name if name == table.head.torch else f"{table.prefixes[0]}{name}": array for name, array in named.items()}


def hugging_face_spec(model: Transformer) -> Spec:
    """Finds the spec under which `model` can be written, as its configuration says it; `ValueError` that names what none holds."""
    spec = spec_of(model)
    layout = spec.architecture
    tried = [layout]
    if layout not in FAMILIES:
        layout = "llama" if spec.rotations else "gpt_neo" if any(spec.windows) else "gpt2"
        tried = [layout, *FAMILIES]
    found = [as_written(dataclasses.replace(spec, architecture=each)) for each in tried]
    written, problems = next((each for each in found if not each[1]), found[0])
    if problems:
        raise ValueError(f"Hugging Face's {layout} layout cannot hold {model.name}: {'; '.join(problems)}.")
    return written
