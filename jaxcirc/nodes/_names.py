"""Nodes by name, as tables print them and the command line takes them: `neuron 3 5 130`, `head 2 0 7 3 q`."""

from typing import Any

import numpy as np

from .._sites import Site
from ._check import Node
from ._nodes import Bias, Error, Final, Head, Latent, Neuron, Position, Token


FORMS = {
    "neuron": "neuron LAYER POSITION INDEX",
    "latent": "latent SITE POSITION INDEX",
    "error": "error SITE POSITION",
    "head": "head LAYER HEAD QUERY KEY [q|k|qk|v]",
    "token": "token POSITION",
    "position": "position POSITION",
    "bias": "bias SITE POSITION",
    "final": "final",
}
_KINDS: dict[str, type] = {
    "neuron": Neuron,
    "latent": Latent,
    "error": Error,
    "head": Head,
    "token": Token,
    "position": Position,
    "bias": Bias,
    "final": Final,
}


def name_of(kind: str, *fields: Any) -> str:
    """The name of a node of a kind, from the fields of its class in their order."""
    return " ".join([kind, *(str(each) for each in fields)])


def parse_node(text: str, seq: int) -> Node:
    """The node of a name; a position below 0 counts from the end of `seq` tokens. **Raises:** `ValueError` that names the forms."""
    kind, *fields = text.split()
    if kind not in _KINDS:
        raise ValueError(f"No node is called {text!r}. Write one as {_forms(*FORMS)}.")
    words = FORMS[kind].split()[1:]
    least = sum(not word.startswith("[") for word in words)
    if not least <= len(fields) <= len(words):
        raise ValueError(f"{text!r}: expected {_forms(kind)}.")
    return _KINDS[kind](*(_field(text, kind, word, field, seq) for word, field in zip(words, fields, strict=False)))


def _field(text: str, kind: str, word: str, field: str, seq: int) -> Any:
    if word == "SITE":
        return Site.parse(field)
    if word.startswith("["):
        return field
    try:
        number = int(field)
    except ValueError:
        raise ValueError(f"{text!r}: {word} is a whole number, got {field!r}. Expected {_forms(kind)}.") from None
    if word == "LAYER":
        return number
    return np.int32(number + seq if number < 0 and word in ("POSITION", "QUERY", "KEY") else number)


def _forms(*kinds: str) -> str:
    return ", ".join(f"`{FORMS[kind]}`" for kind in kinds)
