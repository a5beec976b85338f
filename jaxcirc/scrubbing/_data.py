"""The data that claims draw from: which are of one class, and where their named positions are."""

import dataclasses
import functools as ft
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, UInt32

from .._checks import check_kind
from ..data import Prompts
from ..runs._positions import counted_places


Field = str | int  # the name of a part of a prompt, or a position


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A dataset on the host.

    **Attributes:** - `tokens` `[batch seq]`. - `mask` `[batch seq]`: False for padding. - `prompts`: where they came as such.
    """

    tokens: Int[np.ndarray, "batch seq"]
    mask: Bool[np.ndarray, "batch seq"]
    prompts: Prompts | None

    def __len__(self) -> int:
        return len(self.tokens)

    @ft.cached_property
    def alike(self) -> Int[np.ndarray, " batch"]:
        """Numbers the lengths that prompts have: a datum takes the place of one that has its padding where it has its own."""
        return np.unique(self.mask, axis=0, return_inverse=True)[1].reshape(-1)

    def values(self, field: Field) -> Int[np.ndarray, " batch"]:
        """What each datum has there: its token at a position, its answer, or with `.position` behind a name where that position is.

        **Raises:** `ValueError` for a field that there is not.
        """
        if self.prompts is not None and field in ("answer", "foil"):
            return np.asarray(getattr(self.prompts, str(field)))
        if isinstance(field, str) and field.endswith(".position"):
            return self.at(field.removesuffix(".position"))
        return self.tokens[np.arange(len(self)), self.at(field)]

    def at(self, position: Field) -> Int[np.ndarray, " batch"]:
        """Where each datum has a position, counted from 0.

        **Raises:** `ValueError` for one that there is not, or that is a datum's padding.
        """
        if not isinstance(position, str):
            return self._counted("scrub", np.full(len(self), position))
        named = {} if self.prompts is None else self.prompts.positions
        if position not in named:
            known = f"these have {', '.join(map(repr, named))}" if named else "tokens alone have none"
            raise ValueError(f"scrub: no position of the prompts is named {position!r}; {known}. Or give a number.")
        return self._counted(f"scrub: position {position!r}", np.asarray(named[position]))

    def _counted(self, name: str, positions: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        return counted_places(name, positions[:, None], self.mask)[:, 0]

    def columns(self, positions: tuple[Field, ...]) -> Bool[np.ndarray, "batch seq"]:
        """True at these positions of each datum."""
        return np.any([self.at(each)[:, None] == np.arange(self.tokens.shape[1]) for each in positions], axis=0)

    def classes(self, of: Any) -> list[Hashable]:
        """The class of each datum, as `Conditional` is given it. **Raises:** `ValueError` where there is not one of each."""
        if isinstance(of, (str, int)):
            of = (of,)
        if isinstance(of, tuple):
            fields = [self.values(field).tolist() for field in of]
            return list(zip(*fields, strict=True)) if len(fields) > 1 else fields[0]
        if callable(of):
            return [_hashable(of(self._datum(i))) for i in range(len(self))]
        if len(of) != len(self):
            raise ValueError(
                f"Conditional: expected one class for each of the {len(self)} prompts, got an array of {len(of)}."
            )
        return [_hashable(value) for value in of]

    def _datum(self, i: int) -> Any:
        """One prompt without the axis over them: its tokens, or a `Prompts` of them with its answer and positions."""
        return self.tokens[i] if self._on_host is None else jax.tree.map(lambda x: x[i], self._on_host)

    @ft.cached_property
    def _on_host(self) -> Prompts | None:
        return jax.tree.map(np.asarray, self.prompts)


def uniform(
    words: UInt32[np.ndarray, "sample batch"],
    rows: Int[np.ndarray, "sample batch"],
    classes: Int[np.ndarray, " datum"],
) -> Int[np.ndarray, "sample batch"]:
    """Draws for each of `rows` one of the data of its class, itself among them, by a random word."""
    order, sizes = np.argsort(classes, kind="stable"), np.bincount(classes)
    first, mine = np.cumsum(sizes) - sizes, classes[rows]
    # The upper half of a product of 32 bits each: uniform to one in 2^32.
    among = (words.astype(np.uint64) * sizes[mine].astype(np.uint64)) >> np.uint64(32)
    return order[first[mine] + among.astype(np.int64)]


def check_function(name: str, of: Any) -> None:
    """TypeError unless classes can be made of it."""
    if not callable(of):
        kinds = (str, int, tuple, np.ndarray, jax.Array)
        expected = "the name of a field, a position, several of them, an array of a class for each prompt, or a function of one prompt"
        check_kind(name, of, kinds, expected)
    if isinstance(of, tuple) and not of:
        raise ValueError(f"{name}: expected at least one field. Where nothing tells data apart use jc.Unconditional().")
    if isinstance(of, (np.ndarray, jax.Array)) and not of.ndim:
        raise ValueError(
            f"{name}: expected an array of a class for each prompt, got the number {of}. As a position: int({of})."
        )
    for field in of if isinstance(of, tuple) else (of,) if isinstance(of, int) else ():
        check_field(name, field, "the names of fields, or positions")


def check_field(name: str, field: Any, expected: str) -> None:
    """TypeError unless it is the name of a part of a prompt, or the number of a position."""
    if isinstance(field, bool):
        raise TypeError(f"{name}: expected {expected}, got {field!r}.")
    check_kind(name, field, (str, int), expected)


def _hashable(value: Any) -> Hashable:
    """A class as it is compared: arrays by their entries. **Raises:** `ValueError` for one that is not equal to itself."""
    found = np.asarray(value).tolist() if isinstance(value, (np.ndarray, np.generic, jax.Array)) else value
    found = _tuples(found)
    if found != found:
        raise ValueError("Conditional: a class is NaN, which is in no class, not even its own. Give another function.")
    try:
        hash(found)
    except TypeError:
        raise TypeError(
            f"Conditional: a class is a number, a text, an array or a tuple of such, got a {type(value).__name__}."
        ) from None
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
