"""What an attribution graph takes, by the length of the prompt: `python -m benchmarks.graphs`.

A random model of GPT-2-small's shape with a transcoder of 24,576 latents on every MLP, about 50 on at a position; 2,000 latents with rows.
Seconds, and peak memory beside model and transcoders, each length in a process of its own. Prints a table and writes
`benchmarks/results/graphs.json` and `.md`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from ._graph_verbs import GRAPH_VERBS, ROWS
from ._growth_point import measure_alone
from ._growth_verbs import Point
from ._report import RESULTS, write
from ._settings import describe


LONG = 6000  # tokens


def measured(length: int, blocks: int, width: int) -> dict[str, Any]:
    """One row: seconds of a later call, what the first takes more, and the peak memory."""
    (name,) = GRAPH_VERBS
    found = measure_alone(name, Point(length, 1, blocks, width), repeats=1)
    print(f"{length} tokens: {found.seconds:.1f} s", file=sys.stderr, flush=True)
    return {"length": length, **found._asdict()}


def table(results: dict[str, Any]) -> str:
    """What was measured on, and a line a length."""
    machine = results["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    lines = [
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}. {results['blocks']} blocks of width "
        f"{results['width']}, a transcoder of {32 * results['width']:,} latents on every MLP, {ROWS:,} latents with rows.",
        "",
        "| tokens | seconds | compilation | peak memory | a token more |",
        "|---|---|---|---|---|",
    ]
    before, each = None, 0.0
    for row in results["rows"]:
        more = ""
        if before is not None:
            each = (row["peak_bytes"] - before["peak_bytes"]) / (row["length"] - before["length"])
            more = f"{each / 2**20:.2f} MiB"
        times = f"{row['seconds']:.1f} | {row['compile_seconds']:.1f}"
        lines.append(f"| {row['length']} | {times} | {row['peak_bytes'] / 2**20:.0f} MiB | {more} |")
        before = row
    if before is not None and each > 0:
        at_all = (before["peak_bytes"] + each * (LONG - before["length"])) / 2**30
        lines += ["", f"At as much a token more, {LONG:,} tokens take {at_all:.0f} GiB beside model and transcoders."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.graphs", description="Measures attribution graphs.")
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", metavar="N", default=[16, 64, 256], help="tokens of the prompt (%(default)s)")
    add("--blocks", type=int, metavar="N", default=12, help="how many (%(default)s)")
    add("--width", type=int, metavar="N", default=768, help="d_model (%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder for JSON and table (%(default)s)")
    given = parser.parse_args(argv)
    rows = [measured(length, given.blocks, given.width) for length in given.lengths]
    results = {"machine": describe("highest"), "blocks": given.blocks, "width": given.width, "rows": rows}
    write(results, given.out, "graphs", table)
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
