"""GGUF files: what is written in one, with its tensors left on disk until they are read."""

import dataclasses
import functools as ft
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import looks_like


@dataclasses.dataclass(frozen=True)
class GGUF:
    """**Attributes:** - `metadata`: what the file says, by key. - `tensors`: the package's `ReaderTensor`s, by name."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Any]

    @property
    def architecture(self) -> str:
        """What llama.cpp calls the model's architecture."""
        return str(self.metadata.get("general.architecture"))

    def get(self, key: str) -> Any:
        """What the file says under a key of its architecture; `None` if nothing."""
        return self.metadata.get(f"{self.architecture}.{key}")


def is_gguf(name_or_dir: str | Path) -> bool:
    """Says whether this is the path of a GGUF file."""
    path = Path(name_or_dir).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def open_gguf(path: str | Path) -> GGUF:
    """Opens a GGUF file.

    **Raises:** `ImportError` without the package gguf; `ValueError` if the file is truncated or something else.
    """
    path = Path(path).expanduser()
    stat = path.stat()
    return _open(path, stat.st_mtime_ns, stat.st_size)


@ft.lru_cache(maxsize=1)  # a command asks for the architecture, the tokenizer and the model, and parsing takes seconds
def _open(path: Path, changed: int, size: int) -> GGUF:
    try:
        import gguf
    except ImportError:
        raise ImportError(
            f"{path.name} is a GGUF file, and reading it takes a package: pip install 'jaxcirc[gguf]'."
        ) from None
    with path.open("rb") as file:
        start = file.read(512)
    if not start.startswith(b"GGUF"):
        looks = f" It looks like {what}." if (what := looks_like(start)) else ""
        raise ValueError(f"{path} is not a GGUF file (it begins with {start[:8]!r}).{looks} Download the file itself.")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        return GGUF(path, metadata, {tensor.name: tensor for tensor in reader.tensors})
    except Exception as error:  # of what kind, depends on where the file ends
        raise ValueError(
            f"{path} is not a whole GGUF file ({type(error).__name__}: {str(error).partition(chr(10))[0]}). Its size is {size} bytes: "
            "download it again."
        ) from None
