"""What options take: each text is read and checked while the command line is parsed, before anything else is done.

A function here makes what argparse calls a type. It is given the option's name, so that its message names what was typed.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._checks import check_count, check_number, check_part, check_share, check_threshold
from .._files import check_new_file, check_writable, PICTURES
from .._sites import Site
from ..circuits._circuit import check_output
from ..jobs import Part
from ..view._html import check_page


def count(option: str, what: str, *, least: int = 1) -> Callable[[str], int]:
    """Takes how many `what`, at least `least`."""
    return _reader(int, lambda value: check_count(option, what, value, least=least))


def whole_number(option: str) -> Callable[[str], int]:
    """Takes a position: any whole number."""
    return _reader(int, lambda value: _refuse_text(f"{option} takes whole numbers", value))


def number(option: str) -> Callable[[str], float]:
    """Takes a finite number."""
    return _reader(float, lambda value: check_number(option, value))


def threshold(option: str) -> Callable[[str], float]:
    """Takes a size that others are compared with, 0 or more."""
    return _reader(float, lambda value: check_threshold(option, value))


def share(option: str, what: str) -> Callable[[str], float]:
    """Takes a part of `what`, above 0 and up to 1."""
    return _reader(float, lambda value: check_share(option, what, value))


def part(option: str, what: str) -> Callable[[str], float]:
    """Takes a part of `what`, from 0 to 1."""
    return _reader(float, lambda value: check_part(option, what, value))


def figure(option: str) -> Callable[[str], Path]:
    """Takes where a picture may be written, of a kind that its suffix says."""

    return new_file(option, *PICTURES)


def one_of(option: str, known: Sequence[str], says: str = "is one of {}") -> Callable[[str], str]:
    """Takes one of a few words; `says` what the option does with them."""

    def check(value: str) -> None:
        if value not in known:
            raise ValueError(f"{option} {says.format(', '.join(map(repr, known)))}; got {value!r}.")

    return _reader(str, check)


def site(option: str) -> Callable[[str], str]:
    """Takes the name of a site, such as `blocks.0.hook_mlp_out`; whether a model has it shows when the model is there."""

    def check(value: str) -> None:
        try:
            Site.parse(value)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None

    return _reader(str, check)


def head(option: str) -> Callable[[str], tuple[int, int]]:
    """Takes a head, LAYER.HEAD."""

    def read(text: str) -> tuple[int, int]:
        layer, dot, number = text.partition(".")
        if not (dot and layer.isdecimal() and number.isdecimal()):
            raise ValueError(f"{option}: A head is written LAYER.HEAD, such as 9.6; got {text!r}.")
        return int(layer), int(number)

    return _reader(read, None)


def part_of(option: str) -> Callable[[str], Part]:
    """Takes which of several processes this is, I/N."""

    def read(text: str) -> Part:
        index, slash, of = text.partition("/")
        if not (slash and index.isdecimal() and of.isdecimal() and int(index) < int(of)):
            raise ValueError(f"{option} is written I/N, with I from 0 to N-1, such as 0/4; got {text!r}.")
        return Part(int(index), int(of))

    return _reader(read, None)


def existing_file(option: str) -> Callable[[str], Path]:
    """Takes a file that is read."""

    def check(path: Path) -> None:
        if path.is_dir():
            raise ValueError(f"{option} {path} is a folder. Expected the name of a file.")
        if not path.exists():
            raise ValueError(f"{option} {path}: No such file.")

    return _reader(Path, check)


def existing_folder(option: str) -> Callable[[str], Path]:
    """Takes a folder that is read."""

    def check(path: Path) -> None:
        if not path.is_dir():
            raise ValueError(f"{option} {path}: No such folder.")

    return _reader(Path, check)


def new_circuit(option: str) -> Callable[[str], Path]:
    """Takes a folder that a circuit is written to."""
    return _writable(option, check_output)


def page(option: str) -> Callable[[str], Path]:
    """Takes an HTML file that is written."""

    def check(path: Path) -> None:
        check_page(path)

    return _writable(option, check)


def new_file(option: str, *suffixes: str) -> Callable[[str], Path]:
    """Takes a file that is written, whose suffix is one of these."""

    def check(path: Path) -> None:
        check_new_file(option, path, suffixes)
        _check_place(option, path)

    return _reader(Path, check)


def new_folder(option: str) -> Callable[[str], Path]:
    """Takes a folder that files are written to, beside what it holds."""

    def check(path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file. Expected the name of a folder.")
        if path.is_dir():
            check_writable(path / "file")

    return _writable(option, check)


def _writable(option: str, check: Callable[[Path], None]) -> Callable[[str], Path]:
    def named(path: Path) -> None:
        try:
            check(path)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None
        except OSError as error:
            raise _unwritable(option, path, error) from None
        _check_place(option, path)

    return _reader(Path, named)


def _check_place(option: str, path: Path) -> None:
    try:
        check_writable(path)
    except OSError as error:
        raise _unwritable(option, path, error) from None


def _unwritable(option: str, path: Path, error: OSError) -> ValueError:
    return ValueError(f"{option}: {path} cannot be written: {error.strerror}. Choose another place.")


def _reader(read: Callable[[str], Any], check: Callable[[Any], None] | None) -> Callable[[str], Any]:
    def value_of(text: str) -> Any:
        try:
            try:
                value = read(text)
            except ValueError:
                if check is None:
                    raise
                value = text  # which the check then refuses in its own words
            if check is not None:
                check(value)
        except (ValueError, TypeError, OSError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return value_of


def _refuse_text(expected: str, value: Any) -> None:
    if isinstance(value, str):
        raise ValueError(f"{expected}; got {value!r}.")
