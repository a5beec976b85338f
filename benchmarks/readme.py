"""Puts the tables of the committed results into the README: `python -m benchmarks.readme`; with `--check` exit code 1 if they differ."""

import argparse
import sys
from pathlib import Path

from ._report import fill, RESULTS


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description="Fills the README's tables of benchmarks."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to take them from")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="the file to fill (%(default)s)")
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if a table is another one")
    arguments = parser.parse_args(argv)
    text = arguments.readme.read_text(encoding="utf-8")
    filled = fill(text, arguments.results)
    if arguments.check:
        if filled != text:
            print(
                f"{arguments.readme}: a table is not that in {arguments.results}; run python -m benchmarks.readme.",
                file=sys.stderr,
            )
        return int(filled != text)
    arguments.readme.write_text(filled, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
