"""What a first call takes in deep models: `python -m benchmarks.depth`.

A model of Llama's kind, small in all but the number of its blocks; of each verb the seconds of the first call, in which its programs are
compiled, how many they are, and the seconds of a later call. Each point is a process of its own, without programs kept from others.
Prints a table and writes `benchmarks/results/depth.json` and `.md`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ._depth_verbs import DEPTH_VERBS
from ._growth_point import measure_alone
from ._growth_verbs import Point
from ._report import RESULTS, write
from ._settings import describe


def measured(name: str, depths: list[int], seq: int, width: int) -> dict[str, Any]:
    """One row: of each depth the seconds of the first call and of a later one, and how many programs were compiled."""
    points = []
    for blocks in depths:
        found = measure_alone(name, Point(seq, 1, blocks, width), repeats=3)
        first = found.compile_seconds + found.seconds
        points.append({"blocks": blocks, "first": first, "later": found.seconds, "programs": found.programs})
        print(f"{name}, {blocks} blocks: {first:.2f} s", file=sys.stderr, flush=True)
    return {"name": name, "points": points}


def table(results: dict[str, Any]) -> str:
    """What was measured on, and a line a verb."""
    machine, depths = results["machine"], [point["blocks"] for point in results["rows"][0]["points"]]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    lines = [
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}. Width {results['width']}, "
        f"{results['seq']} tokens. Seconds of the first call, with how many programs it compiles; behind the slash those of a later call.",
        "",
        f"| verb | {' | '.join(f'{blocks} blocks' for blocks in depths)} |",
        "|" + "---|" * (1 + len(depths)),
    ]
    for row in results["rows"]:
        cells = (f"{p['first']:.2f} ({p['programs']}) / {p['later']:.4f}" for p in row["points"])
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description="Measures first calls by depth.")
    add = parser.add_argument
    add("--blocks", type=int, nargs="+", metavar="N", default=[2, 8, 16, 30], help="depths (%(default)s)")
    add("--length", type=int, metavar="N", default=16, help="tokens of the prompt (%(default)s)")
    add("--width", type=int, metavar="N", default=64, help="d_model (%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder for JSON and table (%(default)s)")
    given = parser.parse_args(argv)
    rows = [measured(name, given.blocks, given.length, given.width) for name in DEPTH_VERBS]
    results = {"machine": describe("highest"), "seq": given.length, "width": given.width, "rows": rows}
    write(results, given.out, "depth", table)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
