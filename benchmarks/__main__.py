"""`python -m benchmarks`: the Jacobian engine against PyTorch, with a table, a plot and all numbers as JSON."""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxcirc.cli._bench import add_options
from jaxcirc.cli._parsers import add_json_option

from . import rows as rows  # fills the registry
from ._measure import measure, Settings
from ._plots import draw
from ._report import last_of, table, write
from ._row import make_row, ROWS
from ._settings import compile_quickly, describe, one_thread, precise
from ._sweeps import sweep
from ._timing import matmul_rate, Unequal


BEGAN = time.monotonic()
TABLES = {  # of the rows that are no Jacobians, by what their files are called
    "experiments": ("circuit-edges", "circuit-nodes", "self-repair", "feature-jacobian"),
    "components": (
        *("node-edges", "patching", "path-patching", "exact-edges", "edge-attribution"),
        "scrubbing",
    ),
    "corpus": ("lens",),
}


def run(arguments: argparse.Namespace) -> int:
    """Measures what the options ask for. Exit code 1 if two sides are not equal; then that row has no times."""
    size = "quick" if arguments.quick else arguments.size
    unknown = [name for name in arguments.rows or () if name not in ROWS]
    if unknown:
        raise ValueError(f"No benchmark is called {unknown[0]!r}; there are {', '.join(ROWS)}.")
    # Both libraries share a GPU, so neither may take all of its memory at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if arguments.quick:  # nearly all of its time is compilation; read when the first array is made
        compile_quickly()
    with no_cache(), precise(arguments.precision), one_thread() if arguments.quick else contextlib.nullcontext():
        results = last_of(measured(size, arguments), arguments.out, arguments.name)
    paths = []
    for name, part in tables_of(results, arguments.name, apart=not arguments.rows).items():
        files = write(part, arguments.out, name)
        if part["plots"]:
            files.append(files[0].with_suffix(".svg"))
            draw(part["plots"], files[-1])
        paths += files
    print(json.dumps(results) if arguments.json else table(results))
    progress(f"written: {', '.join(map(str, paths))}")
    return int(any("failed" in row for row in results["rows"]) or "plots_failed" in results)


def tables_of(results: dict[str, Any], name: str, *, apart: bool) -> dict[str, dict[str, Any]]:
    """The results by what their files are called: all in one, or whole experiments `apart` from the Jacobians, in tables of their own."""
    if not apart:
        return {name: results}
    known = {row: table for table, of_table in TABLES.items() for row in of_table}
    some = lambda table: [row for row in results["rows"] if known.get(row["name"], name) == table]
    others = {table: {**results, "rows": some(table), "plots": []} for table in TABLES}
    return {name: {**results, "rows": some(name)}, **others}


def measured(size: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The results so far, after each row. A quick run measures the memory of its first row only: a process for each side takes seconds."""
    quick, without, precision = size == "quick", arguments.without, arguments.precision
    rate = matmul_rate(*((256, 2) if quick else ()))
    results: dict[str, Any] = {
        "machine": describe(precision),
        "size": size,
        "matmul_rate": rate,
        "rows": [],
        "plots": [],
    }
    repeats = min(arguments.repeats, 2) if quick else arguments.repeats
    settings = Settings(
        size, repeats, precision, "memory" not in without, not quick and "torch.compile" not in without, rate
    )
    for i, name in enumerate(arguments.rows or list(ROWS)):
        row = make_row(name, size)
        try:
            found = measure(name, row, settings._replace(memory=settings.memory and (not quick or i == 0)), progress)
        except Unequal as error:
            progress(f"{name}: FAILED: {error}")
            found = {"name": name, "what": row.what, "sizes": dict(row.sizes), "failed": str(error)}
        results["rows"].append(found)
        yield results
    if not arguments.rows:
        try:
            results["plots"] = sweep(settings, progress)
        except Unequal as error:
            progress(f"plots: FAILED: {error}")
            results["plots_failed"] = str(error)
        yield results


@contextlib.contextmanager
def no_cache() -> Iterator[None]:
    """Compiles anew, whatever JAX keeps on disk: compile times are measured."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def progress(said: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.0f} s  {said}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measures the Jacobians against PyTorch.")
    add_options(parser, Path("benchmarks") / "results")
    add_json_option(parser)
    arguments = parser.parse_args(argv)
    try:
        return run(arguments)
    except (ValueError, RuntimeError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
