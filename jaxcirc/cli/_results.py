"""How far a command is, on standard error; how many lines of results are printed; and the object of `--json`."""

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .._progress import progress_bar as bar
from .._typing import Progress
from ._options import count
from ._screen import silent
from ._timing import clock


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Makes a `progress(done, of, stage)` that draws a bar on standard error, unless all is quiet."""
    if silent():
        yield lambda done, of, stage: None
        return
    with bar() as report:
        yield report


def say_json(facts: Mapping[str, Any]) -> None:
    """Prints the one object of `--json`, with the seconds that each phase took."""
    print(json.dumps({**facts, "seconds": clock().seconds()}))


def add_top_option(parser: argparse.ArgumentParser, what: str, default: int) -> None:
    """Adds `--top`, of how many lines of the result are printed, each one of `what`."""
    parser.add_argument(
        "--top",
        type=count("--top", f"{what} to print"),
        default=default,
        metavar="N",
        help=f"how many {what} to print (%(default)s)",
    )
