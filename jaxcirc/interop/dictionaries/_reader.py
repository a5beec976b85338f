"""What a format is: how its files are told from others, and the function that reads one."""

import dataclasses
from collections.abc import Callable

from ...saes import AbstractDictionary
from ._source import Source


@dataclasses.dataclass(frozen=True)
class Reader:
    """One format.

    **Attributes:**

    - `name`: what `format=…` calls it.
    - `read`: a dictionary from a file. Its keyword arguments are the format's options.
    - `fits`: whether a file is of this format, by its tensors and what lies beside it.
    - `files`: names that no other format's files have. Such a file is of these formats, and `fits` chooses among several.
    - `suffixes`: of its files, beyond those that every format may have.
    """

    name: str
    read: Callable[..., AbstractDictionary]
    fits: Callable[[Source], bool]
    files: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Refused:
    """A format that is known in order to be refused by its name: no dictionary of ours computes what it computes."""

    name: str
    fits: Callable[[Source], bool]
    why: str
