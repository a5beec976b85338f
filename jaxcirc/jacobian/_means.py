"""What means over a corpus have in common, whatever they are of: how two become one, and how one is written."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .._files import open_safetensors, read_tensor, writing_file
from .._fingerprint import difference


def check_same(what: str, mine: Any, other: Any, names: Iterable[str]) -> None:
    """ValueError unless two means have the same of all `names`, and are of one model."""
    for name in names:
        if getattr(mine, name) != getattr(other, name):
            raise ValueError(f"{what}: {name} differs: {getattr(mine, name)} here and {getattr(other, name)} there.")
    if (how := difference(mine.model, other.model)) is not None:
        raise ValueError(f"{what}: the other is of another model{how}.")


def merged(mine: Any, other: Any, arrays: Iterable[str], keeps: str) -> Any:
    """Two means as one: `arrays`, `None` in both or in none, weighed by their weights. `keeps` is what positions are measured with, of
    which the one has it that has a sample.
    """
    weight = mine.weight + other.weight
    mean = lambda a, b: None if a is None else (a * mine.weight + b * other.weight) / weight
    first = mine if mine.sample is not None else other
    sample = first.sample
    if mine.sample is not None and other.sample is not None:
        sample = mine.sample.with_(other.sample)
    return dataclasses.replace(
        mine,
        **{name: mean(getattr(mine, name), getattr(other, name)) for name in arrays},
        weight=weight,
        n_positions=mine.n_positions + other.n_positions,
        n_prompts=mine.n_prompts + other.n_prompts,
        certified=None,
        sample=sample,
        **{keeps: getattr(first, keeps)},
    )


def write(
    path: Path, form: str, mean: Any, names: Iterable[str], tensors: Mapping[str, np.ndarray], certified: dict | None
) -> None:
    """Writes tensors, and what a mean has of `names`, its ends and its certificate, as metadata."""
    about = {name: getattr(mean, name) for name in names}
    about |= {"source": str(mean.source), "target": str(mean.target), "certified": certified}
    with writing_file(path) as aside:
        held = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(held, aside, {"format": form, "about": json.dumps(about)})


def opened(path: Path, form: str, what: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors. **Raises:** `ValueError` unless the file is of this form."""
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != form:
            raise ValueError(f"{path} does not hold {what}.")
        return json.loads(metadata["about"]), {name: read_tensor(file, name, path) for name in file.keys()}
