"""What results are of: written beside them before the first, and compared by every later run, which goes on only with the same."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from .._files import read_text, write_text, writing_file
from .._fingerprint import fingerprint
from .._version import __version__
from ..models import Transformer
from ..saes import AbstractDictionary, Saes
from ._lock import briefly_alone
from ._source import AbstractSource


NAME = "manifest.json"
FORMAT = 1


def settings_of(
    model: Transformer,
    saes: Saes,
    source: AbstractSource,
    tokenizer: Any,
    verb: str,
    options: dict[str, Any],
    platform: str,
) -> dict[str, Any]:
    """All that results depend on: change one, and a table would hold numbers of two kinds. As JSON holds it, so that what is read again is
    the same.
    """
    dictionaries: dict[str, AbstractDictionary] = {str(site): sae for site, sae in saes.items()}
    found = {
        "model": fingerprint(model),
        "dictionaries": {site: fingerprint(dictionaries[site]) for site in sorted(dictionaries)},
        "tokenizer": _tokenizer(tokenizer),
        "prompts": {"digest": source.digest, "bytes": source.size, "lines": source.lines},
        "verb": verb,
        "options": options,
        "numbers": {
            "dtype": str(model.dtype),
            "x64": bool(jax.config.values["jax_enable_x64"]),
            "precision": str(jax.config.values["jax_default_matmul_precision"]),
            "platform": platform,
        },
        "versions": {"jaxcirc": __version__, "jax": jax.__version__, "jaxlib": jaxlib.version.__version__},
    }
    return json.loads(json.dumps(found, default=_number))


def _number(value: Any) -> Any:
    """A scalar of NumPy or JAX, which checks take for the number that it is, as a number of Python. **Raises:** `TypeError` for others."""
    if np.ndim(value) == 0 and isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.item()
    raise TypeError(f"attribute: a setting of a job is plain values, so that it can be written down; got {value!r}.")


def _tokenizer(tokenizer: Any) -> str:
    """Tells tokenizers apart by what they make of some short texts of every sort: they have no fingerprint that all kinds share."""
    texts = [
        "The teachers that Mary's 12 doctors liked",
        "\n\tare here;  naïve Straße 東京",
        "{'a': [1.5]} <|endoftext|></s>",
    ]
    texts += ["".join(map(chr, range(first, first + 16))) for first in range(33, 127, 16)]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    special = [str(token) for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)]
    return fingerprint({"ids": [tuple(each) for each in ids], "special": special})


def agree(out: Path, settings: dict[str, Any], about: dict[str, Any]) -> None:
    """Writes the manifest, with what is `about` this run and may differ; or compares the settings with those that are there.

    **Raises:** `ValueError` that says what was, and what is, where they differ; for a folder of something else.
    """
    with briefly_alone(out):  # or of two that begin together one would find the other's half of it
        _agree(out, settings, about)


def _agree(out: Path, settings: dict[str, Any], about: dict[str, Any]) -> None:
    path = out / NAME
    held = _read(path) if path.exists() else None
    if held is None:
        if foreign := [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]:
            raise ValueError(
                f"{out} holds other files ({', '.join(sorted(foreign)[:3])}) and no {NAME}. Choose a new folder, or an empty one."
            )
    elif differing := list(_differences(held["settings"], settings, ())):
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{out} was begun with other settings: {'; '.join(differing[:3])}{more}. Give those, or choose another folder."
        )
    wanted = {"format": FORMAT, **about, "settings": settings}
    if wanted != held:
        with writing_file(path) as aside:
            write_text(aside, json.dumps(wanted, indent=1) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(read_text(path, expected="a manifest"))
        if held["format"] == FORMAT and isinstance(held["settings"], dict):
            return held
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path} is no manifest of a batch job of this version. Choose another folder.")


def _differences(was: Any, now: Any, where: tuple[str, ...]) -> Iterator[str]:
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted({*was, *now}):
            yield from _differences(was.get(name), now.get(name), (*where, name))
    elif was != now:
        name = where[-1] if where[0] == "options" else " ".join(where)
        yield f"{name} was {_shown(was)} and is {_shown(now)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value)
