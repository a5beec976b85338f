"""What there is to say of an architecture: its configuration in both directions, and its tensors."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from .._attributes import ACTS, Inert
from .._keymaps import Table
from .._spec import Spec


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture of transformers.

    **Attributes:**

    - `classes`: of its models with an unembedding and without; the first is written.
    - `used`: the attributes that are used, with the values that transformers takes where a configuration does not say.
    - `only`: the attributes that are taken at values that change nothing. `ignored`: further ones that never matter.
    - `aliases`: other names of attributes, `{other: name}`.
    - `read`, `write`: from these attributes to a spec, and back, as far as they can say it.
    - `table`: its tensors.
    """

    classes: tuple[str, ...]
    used: Mapping[str, Any]
    only: Mapping[str, Inert]
    read: Callable[[Mapping[str, Any], str], Spec]
    write: Callable[[Spec], dict[str, Any]]
    table: Table
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: frozenset[str] = frozenset()


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


def bound(values: Mapping[str, Any], name: str, source: str) -> float | None:
    """The number above 0 under `name`, or `None`."""
    return None if values[name] is None else positive(values, name, source)


def per_head(d_model: int, n_heads: int, width: str, heads: str, source: str) -> int:
    """The width of a head, where all of them fill `d_model`."""
    if d_model % n_heads:
        raise ValueError(f"{source}: config.json gives {width} = {d_model}, which {heads} = {n_heads} does not divide.")
    return d_model // n_heads


def check_shared(n_heads: int, n_kv_heads: int, heads: str, shared: str, source: str) -> None:
    """ValueError unless each key and value is read by as many heads as every other."""
    if n_heads % n_kv_heads:
        raise ValueError(
            f"{source}: the configuration gives {heads} = {n_heads}, which {shared} = {n_kv_heads} does not divide."
        )


def activation(values: Mapping[str, Any], name: str, source: str) -> str:
    """Our name of the activation function under `name`."""
    act = values[name]
    if act not in ACTS:
        raise ValueError(f"{source}: {name} {act!r} is not supported; {', '.join(ACTS)} are.")
    return ACTS[act]
