"""Checks of single arguments, at the door of every verb and every command, before any work.

`name` is what the caller typed: `"discover: node_threshold"` from Python, `"--node-threshold"` from the command line. So one check serves
both, and its message speaks the language of whoever reads it.
"""

import math
import numbers
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int


def check_count(name: str, what: str, value: Any, *, least: int = 1) -> None:
    """ValueError unless `value`, how many `what` there are, is a whole number of at least `least`."""
    if not _is_whole(value) or value < least:
        raise ValueError(f"{name} is how many {what}, at least {least}; got {value!r}.")


def check_optional_count(name: str, what: str, value: Any, *, least: int = 1) -> None:
    """The same for an argument that may be left out."""
    if value is not None:
        check_count(name, what, value, least=least)


def check_threshold(name: str, value: Any) -> None:
    """ValueError unless `value` is a number from 0 on that sizes can be compared with: nothing is above NaN, and everything above -1."""
    if not _is_number(value) or math.isnan(value) or value < 0:
        raise ValueError(f"{name} is a size that others are compared with, 0 or more; got {value!r}.")


def check_thresholds(name: str, values: Any) -> list[float]:
    """`values` as numbers. **Raises:** `ValueError` for none at all, and for one that is no threshold."""
    found = _listed(name, values)
    for value in found:
        check_threshold(name, value)
    return [float(value) for value in found]


def check_numbers(name: str, values: Any) -> list[float]:
    """`values` as numbers. **Raises:** `ValueError` for none at all, and for one that is not finite."""
    found = _listed(name, values)
    for value in found:
        check_number(name, value)
    return [float(value) for value in found]


def check_number(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}.")


def check_positive(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}.")


def check_seed(name: str, value: Any) -> None:
    """ValueError unless `value` can seed a random generator."""
    if not _is_whole(value) or value < 0:
        raise ValueError(f"{name}: expected a whole number from 0 on, got {value!r}.")


def check_key(name: str, value: Any) -> None:
    """TypeError for what is no random key, ValueError for several."""
    kind = getattr(value, "dtype", None)
    typed = kind is not None and jnp.issubdtype(kind, jax.dtypes.prng_key)
    if not (typed or kind == np.uint32):
        raise TypeError(f"{name}: expected a random key, got {_shown(value)}. Make one: jax.random.key(0).")
    if value.shape != (() if typed else (2,)):
        raise ValueError(f"{name}: expected one random key, got an array {value.shape} of {kind}. Give one of them.")


def check_share(name: str, what: str, value: Any) -> None:
    """ValueError unless `value` is a part of `what`, above 0 and up to 1."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(f"{name} is a part of the {what}, above 0 and up to 1; got {value!r}.")


def check_part(name: str, what: str, value: Any) -> None:
    """ValueError unless `value` is a part of `what`, from 0, none of it, to 1, all."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name} is a part of the {what}, from 0 to 1; got {value!r}.")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """ValueError unless `value` is one of the words that there are."""
    if value not in known:
        raise ValueError(f"{name} must be {' or '.join(map(repr, known))}, got {value!r}.")


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], expected: str) -> None:
    """TypeError unless `value` is of this kind; `expected` says what makes one."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {_shown(value)}.")


def check_reals(name: str, array: Any) -> None:
    """TypeError for complex numbers, of which a cast would leave out a part."""
    if np.iscomplexobj(array):
        raise TypeError(f"{name}: expected real numbers, got complex ones. Give the real and the imaginary part apart.")


def check_path(name: str, value: Any) -> Path:
    """`value` as a path. **Raises:** `TypeError` for what is no name of a file or a folder."""
    check_kind(name, value, (str, os.PathLike), "a path")
    return Path(value)


def check_list(name: str, what: str, values: Any) -> list[Any]:
    """`values` as a list. **Raises:** `TypeError` for a text, which is a list of letters too, and for what is no list at all."""
    if isinstance(values, str):
        raise TypeError(f"{name}: expected a list of {what}, got one. Write [{values!r}].")
    check_kind(name, values, Iterable, f"a list of {what}")
    return list(values)


class Chosen(NamedTuple):
    """Entries of a list by their numbers; and of how many, where a mask said which."""

    indices: Int[np.ndarray, " n"]
    among: int | None

    def check_among(self, name: str, what: str, count: int) -> None:
        """ValueError for a mask of another length than there are entries."""
        if self.among not in (None, count):
            raise ValueError(f"{name}: the mask has {self.among} entries, and there are {count} {what}.")


def check_chosen(name: str, what: str, values: Any) -> Chosen:
    """Which entries `values` chooses: a list of whole numbers, or a mask with a boolean for each entry there is.

    **Raises:** `TypeError` for what is no list, and for one of anything else: NumPy would cut off decimals, and take booleans for 0 and 1.
    """
    # An array is not made a list of: one of JAX would be taken apart entry by entry.
    listed = [] if hasattr(values, "dtype") else check_list(name, f"numbers of {what}", values)
    try:
        array = np.asarray(values if hasattr(values, "dtype") else listed)
    except ValueError:  # lists of several lengths in it
        array = np.empty((0, 0))
    if array.shape == (0,):
        return Chosen(np.zeros(0, np.int64), None)
    mixed = array.dtype != bool and any(isinstance(value, bool | np.bool_) for value in listed)
    if array.ndim != 1 or array.dtype.kind not in "iub" or mixed:
        raise TypeError(
            f"{name}: expected the numbers of {what}, whole and from 0 on, or a mask with a boolean for each; got {_shown(values)}."
        )
    if array.dtype == bool:
        return Chosen(np.flatnonzero(array), len(array))
    return Chosen(array.astype(np.int64), None)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"


def _listed(name: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a list of numbers, got {values!r}. Write [{values}].")
    found = list(values)
    if not found:
        raise ValueError(f"{name}: expected at least one number, got an empty list.")
    return found


def _is_number(value: Any) -> bool:
    """Also for scalars of NumPy and JAX, which are no `numbers.Real`, and not for booleans."""
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Real) or (getattr(value, "shape", None) == () and _converts(value))


def _is_whole(value: Any) -> bool:
    return _is_number(value) and float(value).is_integer() and not isinstance(value, float)


def _converts(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
