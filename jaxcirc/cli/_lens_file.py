"""The option of a file that a lens is written to."""

import argparse
from collections.abc import Callable
from pathlib import Path

from ..lens._store import check_suffix, SUFFIXES
from ._options import new_file


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds `--out`, the lens's file."""
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        type=lens_file("--out"),
        help="file for the lens: .safetensors, or .pt as it is published",
    )


def lens_file(option: str) -> Callable[[str], Path]:
    """Takes a file that a lens is written to."""
    writable = new_file(option, *SUFFIXES)

    def read(text: str) -> Path:
        path = writable(text)
        try:
            return check_suffix(option, path)
        except (ValueError, ImportError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read
