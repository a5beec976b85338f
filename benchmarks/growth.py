"""What cost grows with: `python -m benchmarks.growth`.

For each verb its time, the time of its compilation, the number of programs and its peak memory, each size varied by itself: the length
of prompts, their number, the blocks and the width. Each point is a process of its own. Powers are fitted, and from them the largest
problem of GPT-2-small's shape that fits into 24 and 80 GiB. Prints a table and writes `benchmarks/results/growth.json` and `.md`.

Of a CPU, which others share, times are ratios to the first point of each row; of a GPU they are in seconds.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import jax

from ._growth_fit import exponents
from ._growth_point import measure_alone
from ._growth_report import table
from ._growth_verbs import Point, VERBS
from ._report import RESULTS, write
from ._settings import compile_quickly, describe


BEGAN = time.monotonic()


def points(arguments: argparse.Namespace, batched: bool) -> tuple[Point, list[Point]]:
    """A prompt of the middle length, with the middle number of blocks, and the points that differ from it in one size."""
    sizes = {
        "seq": arguments.lengths,
        "batch": arguments.batches,
        "blocks": arguments.blocks,
        "width": arguments.widths,
    }
    if not batched:
        sizes["batch"] = [1]
    middle = lambda values: values[len(values) // 2]
    base = Point(middle(arguments.lengths), sizes["batch"][0], middle(arguments.blocks), arguments.widths[0])
    every = [base._replace(**{name: value}) for name, values in sizes.items() for value in values]
    return base, sorted({*every})


def measured(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: its points, and the powers that they grow by."""
    base, wanted = points(arguments, VERBS[name].batched)
    found: list[dict[str, Any]] = []
    for point in wanted:
        numbers = measure_alone(name, point, arguments.repeats)
        found.append({**point._asdict(), **numbers._asdict()})
        took = time.monotonic() - BEGAN
        print(
            f"{took:6.0f} s  {name}: {', '.join(f'{n} {v}' for n, v in found[-1].items())}", file=sys.stderr, flush=True
        )
    fitted = {of: exponents(found, base, of) for of in ("seconds", "peak_bytes")}
    return {"name": name, "base": base._asdict(), "points": found, "exponents": fitted}


def without_seconds(row: dict[str, Any]) -> dict[str, Any]:
    """The row with ratios to its first point in place of seconds."""
    first = row["points"][0]
    names = {"seconds": "time_ratio", "compile_seconds": "compile_ratio"}
    ratio = lambda point, name: round(point[name] / first[name], 3) if first[name] else None
    plain = lambda point: {name: value for name, value in point.items() if name not in names}
    each = [{**plain(point), **{new: ratio(point, name) for name, new in names.items()}} for point in row["points"]]
    return {**row, "points": each}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.growth", description="Measures what cost grows with.")
    numbers = {"type": int, "nargs": "+", "metavar": "N"}
    found.add_argument("--verbs", nargs="+", metavar="NAME", help="only these (a wrong name lists all)")
    found.add_argument("--lengths", **numbers, default=[16, 64, 256], help="tokens of a prompt (%(default)s)")
    found.add_argument(
        "--batches", **numbers, default=[1, 4, 16], help="prompts; the first is that of all other points (%(default)s)"
    )
    found.add_argument("--blocks", **numbers, default=[1, 4, 12], help="blocks (%(default)s)")
    found.add_argument(
        "--widths", **numbers, default=[64, 128], help="d_model; the first is that of all other points (%(default)s)"
    )
    found.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="later calls, the fastest counts (%(default)s)"
    )
    found.add_argument("--quick", action="store_true", help="tiny sizes: that all of it runs; its numbers mean nothing")
    found.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON and table (%(default)s)")
    return found


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    unknown = [name for name in arguments.verbs or () if name not in VERBS]
    if unknown:
        print(f"No verb is called {unknown[0]!r}; there are {'; '.join(VERBS)}.", file=sys.stderr)
        return 2
    if arguments.quick:
        arguments.lengths, arguments.batches, arguments.blocks, arguments.widths = [4, 8], [2], [1], [8]
        compile_quickly()  # in the points' processes
    rows = [measured(name, arguments) for name in arguments.verbs or VERBS]
    on_cpu = jax.default_backend() == "cpu"
    results = {"machine": describe("highest"), "rows": [without_seconds(row) if on_cpu else row for row in rows]}
    write(results, arguments.out, "growth", table)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
