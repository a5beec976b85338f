"""How results look at a prompt and in a notebook: what each attribute is, its axes and sizes, and not the numbers themselves."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, ClassVar, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


if TYPE_CHECKING:
    import pandas as pd


ROWS = 10  # of a table, in a notebook
MOST = 1_000_000  # numbers that are looked at for their least and largest
WIDE = 90  # letters of a value that is no array


class Shown:
    """Gives a class the text and the table that say what its attributes are.

    A class may say more: `SHOWN`, which attributes, by default its fields; `_heading`, its first line; `_facts`, anything else than
    attributes; `_tables`, rows that are worth seeing at once.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ()

    def _heading(self) -> str:
        return type(self).__name__

    def _facts(self) -> Mapping[str, str]:
        return dict(_attributes(self, self.SHOWN or tuple(_fields(self))))

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {}

    def __repr__(self) -> str:
        facts = self._facts()
        wide = max(map(len, facts), default=0)
        return "\n".join([self._heading(), *(f"  {name:<{wide}}  {what}" for name, what in facts.items())])

    def _repr_html_(self) -> str:
        # The text of a class that writes its own is the heading, and says what is in it better than its fields.
        own = type(self).__repr__ is not Shown.__repr__
        facts = {} if own and type(self)._facts is Shown._facts else self._facts()
        rows = "".join(
            f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(what)}</td></tr>'
            for name, what in facts.items()
        )
        parts = [f"<strong>{escape(repr(self) if own else self._heading())}</strong>"]
        parts += [f"<table>{rows}</table>"] if rows else []
        for title, table in self._tables().items():
            more = f", the first {ROWS} of {len(table)}" if len(table) > ROWS else ""
            parts += [f"<p>{escape(title)}{more}</p>", table.head(ROWS).to_html(index=False, border=0)]
        return f"<div>{''.join(parts)}</div>"


def _fields(shown: Any) -> Iterator[str]:
    return (field.name for field in dataclasses.fields(shown) if not field.name.startswith("_") and field.repr)


def _attributes(shown: Any, names: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for name in names:
        value = getattr(shown, name)
        if value is not None and not (isinstance(value, Mapping | tuple | list) and not value):
            yield name, described(value, _annotation(type(shown), name))


def _annotation(owner: type, name: str) -> Any:
    """What an attribute is declared to be, a field or a property."""
    found = getattr(owner, name, None)
    if isinstance(found, property) and found.fget is not None:
        return found.fget.__annotations__.get("return")
    return next(
        (base.__annotations__[name] for base in owner.__mro__ if name in getattr(base, "__annotations__", {})), None
    )


def described(value: Any, annotation: Any = None) -> str:
    """Says what a value is: of an array its type, the names and sizes of its axes, and between which numbers it lies."""
    if _is_array(value):
        return _array(value, annotation)
    if isinstance(value, Mapping):
        return _mapping(value)
    if type(value).__name__ == "DataFrame":
        return f"table of {len(value)} rows: {', '.join(map(str, value.columns))}"
    if isinstance(value, tuple | list) and value and (_is_array(value[0]) or len(repr(value)) > WIDE):
        return f"{len(value)} of {type(value[0]).__name__}"
    if dataclasses.is_dataclass(value) or (isinstance(value, Shown)):
        return type(value).__name__ if "\n" in repr(value) or len(repr(value)) > WIDE else repr(value)
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= WIDE else f"{text[: WIDE - 1]}…"


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _array(value: Any, annotation: Any) -> str:
    names = _axes(annotation)
    sizes = [str(size) for size in value.shape]
    if len(names) == len(sizes):
        sizes = [size if name.isdecimal() else f"{name} {size}" for name, size in zip(names, sizes, strict=True)]
    return f"{value.dtype}[{', '.join(sizes)}]{_range(value)}"


def _axes(annotation: Any) -> list[str]:
    """The names of an array's axes, out of its jaxtyping annotation, wherever in a union that is."""
    if hasattr(annotation, "dim_str"):
        return [name.lstrip("#_?") or "n" for name in annotation.dim_str.split()]
    return next((names for each in typing.get_args(annotation) if (names := _axes(each))), [])


def _range(value: Any) -> str:
    """The least and the largest number, of arrays that are there and not large."""
    if isinstance(value, Tracer | jax.ShapeDtypeStruct) or not 0 < value.size <= MOST:
        return ""
    if isinstance(value, jax.Array) and (value.is_deleted() or not value.is_fully_addressable):
        return ""
    if value.dtype == bool:
        return f", {int(np.asarray(value).sum())} of {value.size} true"
    if not jnp.issubdtype(value.dtype, jnp.number) or jnp.issubdtype(value.dtype, jnp.complexfloating):
        return ""
    numbers = np.asarray(value).astype(np.float64)
    known = numbers[~np.isnan(numbers)]
    if not known.size:
        return ", nothing but NaN"
    low, high = (float(end) for end in (known.min(), known.max()))
    return f", {low:z.4g}" if low == high else f", {low:z.4g} to {high:z.4g}"


def _mapping(value: Mapping[Any, Any]) -> str:
    names = [str(key) for key in value]
    shown = ", ".join(names) if len(names) <= 3 else f"{names[0]}, …, {names[-1]}"
    return f"{len(names)}: {shown}"
