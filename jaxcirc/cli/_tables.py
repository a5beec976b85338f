"""Tables: printed, as plain JSON, and in the files of `--out`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .._files import write_text, writing_file
from ._options import new_file


if TYPE_CHECKING:
    import pandas as pd


def add_table_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds `--out`, a file for a table of `what`."""
    parser.add_argument(
        "--out", type=new_file("--out", ".csv"), metavar="FILE", help=f"file for the table of {what}, .csv"
    )


def save_table(table: "pd.DataFrame", path: Path | None) -> None:
    """Writes a table as CSV, all digits of its numbers and nothing for NaN, if that is asked for."""
    if path is not None:
        with writing_file(path) as aside:
            write_text(aside, table.to_csv(index=False, lineterminator="\n"))


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Makes plain JSON of a table, which has no NaN: the intervals of one prompt are null."""
    return [plain(row) for row in table.to_dict("records")]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """Puts null for NaN, which JSON does not have."""
    return {name: None if value != value else value for name, value in row.items()}


def lines(table: "pd.DataFrame") -> str:
    """The table as it is printed."""
    return table.to_string(index=False, float_format="{:z.3g}".format)
