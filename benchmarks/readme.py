"""Puts the committed results into the README and the page of benchmarks: `python -m benchmarks.readme`.

With `--check` nothing is written, and the exit code is 1 if a table or a plot is another one than that of the results.
"""

import argparse
import sys
from pathlib import Path

from ._report import fill, RESULTS


PAGES = (Path("README.md"), Path(".github/docs/benchmarks.md"))
PLOTS = (
    "agreement.svg",
    "agreement-by-position.svg",
    "jacobians.svg",
)  # the site is built from one folder, so they lie there, too


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description="Fills the tables of benchmarks in the README and its page."
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder to take them from")
    parser.add_argument("--readme", type=Path, nargs="+", default=PAGES, help="the files to fill (README and the page)")
    parser.add_argument("--check", action="store_true", help="write nothing, and exit with 1 if a table is another one")
    arguments = parser.parse_args(argv)
    filled = {path: fill(path.read_text(encoding="utf-8"), arguments.results) for path in arguments.readme}
    if PAGES[1] in filled:
        plots = {name: (arguments.results / name).read_text(encoding="utf-8") for name in PLOTS}
        filled |= {PAGES[1].parent / name: plot for name, plot in plots.items()}
    stale = [path for path, text in filled.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if arguments.check:
            print(f"{path} is not what {arguments.results} says; run python -m benchmarks.readme.", file=sys.stderr)
        else:
            path.write_text(filled[path], encoding="utf-8")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
