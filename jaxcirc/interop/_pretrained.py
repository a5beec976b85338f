"""Models from checkpoints."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

from ..models import Transformer
from . import _hub
from ._build import build
from ._config import class_of, read_config
from ._gguf import gguf_spec, read_gguf
from ._gguf_file import is_gguf, open_gguf
from ._read import FORMATS, read_configuration, read_folder, weights_file
from ._shipped import SHIPPED, shipped_folder
from ._spec import Spec
from ._tensors import checked_dtype, read, to_numpy


def from_pretrained(
    name_or_dir: str | Path,
    *,
    revision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    ignore_config: Collection[str] = (),
) -> Transformer:
    """A model from a checkpoint.

    **Arguments:**

    - `name_or_dir`: a shipped model (`"tiny-gpt2"`, `"tiny-gpt-neo"`); a folder with `config.json` and weights, which are
      `model.safetensors`, `pytorch_model.bin` (takes PyTorch) or `flax_model.msgpack` (takes Flax), whole or in shards; one of those
      files; a `.gguf` file (takes gguf, `pip install 'jaxcirc[gguf]'`), dequantised; or an id of the Hugging Face Hub (`"gpt2"`,
      `"EleutherAI/pythia-70m-deduped"`). A name is looked for in this order, so `"./tiny-gpt2"` is a folder.
    - `revision`: a branch, tag or commit of the Hub.
    - `dtype`: of the weights. What is computed with weights of half precision is float32.
    - `ignore_config`: attributes of the configuration that are not known, or not supported, and that you know to change nothing.

    Of a tied embedding and unembedding one is enough, under either name.

    **Returns:** the model, with its arrays under TransformerLens' names, unprocessed.

    **Raises:** `ValueError` for an architecture or a configuration attribute that is not supported, tensors that are missing,
    unexpected, of another shape or not finite, and files that are truncated or hold more than weights.

    >>> model = jc.from_pretrained("tiny-gpt2")
    >>> model.n_layers, model.blocks[0].attn.W_Q.shape[1]
    (4, 128)
    """
    dtype = checked_dtype(dtype)
    spec, arrays = _spec_and_arrays(name_or_dir, revision, ignore_config)
    return build(spec, arrays, name=_short(name_or_dir), dtype=dtype)


def _spec_and_arrays(
    name_or_dir: str | Path, revision: str | None, ignore: Collection[str]
) -> tuple[Spec, dict[str, np.ndarray]]:
    """Reads what a checkpoint is and what it holds; what the file's own tensors took is free again when this returns."""
    folder, file = locate(name_or_dir, revision)
    source = str(name_or_dir)
    if file is not None and is_gguf(folder / file):
        spec, stored = read_gguf(folder / file, ignore)
        return spec, read(stored, spec, kind="torch", source=source)
    stored, kind, config = read_folder(folder, file)
    spec = read_config(config, source, ignore)
    return spec, read(stored, spec, kind=kind, source=source)


def from_torch(hf_model: Any, *, dtype: DTypeLike | None = None, ignore_config: Collection[str] = ()) -> Transformer:
    """A model from a transformers PyTorch model in memory, of any of the architectures that `from_pretrained` reads, with an unembedding
    or, where it is tied to the embedding, without. One of a class of your own that is derived from theirs is read as theirs: what it
    computes otherwise is not seen.

    **Arguments:** - `dtype`: of the arrays; `None` keeps the embedding's. - `ignore_config`: as of `from_pretrained`.

    >>> jc.from_torch(transformers.GPT2LMHeadModel.from_pretrained("gpt2"))  # doctest: +SKIP
    """
    try:
        config, state = hf_model.config.to_dict(), dict(hf_model.state_dict())
    except AttributeError:
        raise TypeError(
            f"Expected a transformers PyTorch model, with a config and a state_dict; got {type(hf_model).__name__}."
        ) from None
    source = type(hf_model).__name__
    spec = read_config(config | {"architectures": [class_of(hf_model)]}, source, ignore_config)
    arrays = read({name: to_numpy(name, value) for name, value in state.items()}, spec, kind="torch", source=source)
    return build(spec, arrays, name=config.get("_name_or_path") or source, dtype=dtype or arrays["W_E"].dtype)


def check_pretrained(name_or_dir: str | Path, revision: str | None = None) -> None:
    """ValueError if `from_pretrained` would find no model under this name, or one that is not supported: for before other work. Of the Hub
    only the configuration is downloaded.
    """
    if _is_local(name_or_dir):
        folder, file = locate(name_or_dir, revision)
        if file is not None and is_gguf(folder / file):
            gguf_spec(open_gguf(folder / file))
            return
        config = read_configuration(folder)
        if file is None:
            weights_file(folder)
    else:
        config = read_configuration(_hub.configuration(str(name_or_dir), revision).parent)
    read_config(config, str(name_or_dir))


def locate(name_or_dir: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """Finds the folder of a checkpoint, and the weights file in it if one was named."""
    if not isinstance(name_or_dir, str | Path):
        raise TypeError(
            f"from_pretrained: expected the name of a model, or its folder, got {name_or_dir!r}. Shipped are {', '.join(SHIPPED)}."
        )
    name, path = str(name_or_dir), Path(name_or_dir).expanduser()
    if name in SHIPPED:
        path = shipped_folder(name)
    elif not _is_local(name_or_dir):
        return _hub.download(name, revision), None
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} is of the Hugging Face Hub, and {name!r} is on this disk; leave it out."
        )
    if path.is_file():
        file = path.name.removesuffix(".index.json")
        if file not in FORMATS and path.suffix != ".gguf":
            raise ValueError(
                f"{path} is not called like a weights file; expected {', '.join(FORMATS)}, a .gguf file, or the folder of one."
            )
        return path.parent, path.name
    return path, None


def _is_local(name_or_dir: str | Path) -> bool:
    name = str(name_or_dir)
    return name in SHIPPED or bool(name and Path(name).expanduser().exists())


def _short(name_or_dir: str | Path) -> str:
    path = Path(name_or_dir).expanduser()
    if not path.exists():
        return str(name_or_dir)
    if path.suffix == ".gguf":
        return path.stem
    return (path if path.is_dir() else path.parent).resolve().name
