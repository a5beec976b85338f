"""What prompts take, and how many fit: `python -m benchmarks.memory_plan > .github/docs/memory.md`.

Peak memory of node effects, edge effects, the lens and edge attribution is measured at small sizes, each in a process of its own; the bytes
of a verb's parts (`_growth_verbs.py`, `_plan_verbs.py`) are fitted to it, and a plan is made of them for models that were not run. Edge
attribution is also measured on a model of over a billion weights; making that takes 20 GB. Prints it as markdown, and writes what was
measured to `benchmarks/results/memory_plan.json`.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, NamedTuple

from ._growth_fit import Fit, fit
from ._growth_point import measure_alone
from ._growth_verbs import KEPT, Point
from ._plan_verbs import PLAN_VERBS
from ._settings import describe


RESULTS = Path(__file__).parent / "results"
ROOM, GIB = 80e9, 2**30
TOKENS = 64  # of a prompt in the plan
POINTS = (
    Point(64, 4, 4, 64),
    Point(256, 4, 4, 64),
    Point(64, 16, 4, 64),
    Point(64, 4, 12, 64),
    Point(64, 4, 4, 128),
)
QUICK = (Point(4, 2, 2, 8), Point(8, 2, 2, 8))
EDGES = "edge_attribution"
BILLION = Point(TOKENS, 2, 16, 2048)  # two prompts of a model of 1.34 billion weights


class Shape(NamedTuple):
    """A model with dictionaries: sizes as of a `Point`, but each its own; and how many numbers its weights and dictionaries are."""

    what: str
    seq: int
    batch: int
    blocks: int
    width: int
    heads: int
    sites: int
    d_sae: int
    weights: float
    dictionaries: float

    @property
    def tokens(self) -> int:
        return self.batch * self.seq


GPT2_XL = Shape(
    "GPT-2-XL, a dictionary of 24,576 latents at every sublayer's output, every block's and the embedding",
    *(TOKENS, 1, 48, 1600, 25, 145, 24_576),
    weights=1.5576e9,
    dictionaries=145 * 2 * 1600 * 24_576,
)
GEMMA_2 = Shape(
    "Gemma-2-2B, Gemma Scope's dictionaries of 16,384 latents at every attention's, MLP's and block's output",
    *(TOKENS, 1, 26, 2304, 8, 78, 16_384),
    weights=2.6143e9,
    dictionaries=26 * 2 * (2048 + 2 * 2304) * 16_384,
)


def measured(name: str, points: tuple[Point, ...]) -> list[dict[str, Any]]:
    """The peak memory of a verb at each point."""
    batched, found = PLAN_VERBS[name].batched, []
    for point in dict.fromkeys(point if batched else point._replace(batch=1) for point in points):
        peak = measure_alone(name, point, repeats=1).peak_bytes
        found.append({**point._asdict(), "peak_bytes": peak})
        print(f"{name}, {point}: {peak / 2**20:.1f} MiB", file=sys.stderr, flush=True)
    return found


def plan(rows: dict[str, list[dict[str, Any]]], large: dict[str, Any], machine: dict[str, Any]) -> Iterator[str]:
    """The page, line by line."""
    largest = max(point["peak_bytes"] for points in rows.values() for point in points)
    yield from ["# Memory: what a prompt takes", ""]
    yield from _paragraph(
        f"""Written by `python -m benchmarks.memory_plan`. Measured is peak memory at small sizes, of at most {largest / 2**20:.0f} MiB, on
        {machine["processor"]}, {machine["dtype"]}, jax {machine["jax"]}. **Everything about GPT-2-XL and Gemma-2-2B is extrapolated by the
        fit, to hundreds of times of what was measured: neither was run.** An accelerator's programs hold other temporary arrays than a
        CPU's. Take a plan as an order of size, begin with a third of the device left free, and go up from there. Prompts have {TOKENS}
        tokens; what is theirs grows in proportion to that. One latent in 512 is on at a position, and edges are those between
        {KEPT} nodes a site."""
    )
    fits = {name: fit(points, PLAN_VERBS[name].memory) for name, points in rows.items()}
    yield from ["", "## What was fitted", "", *_fitted(rows, fits)]
    for shape in (GPT2_XL, GEMMA_2):
        yield from ["", f"## {shape.what}", "", *_planned(shape, fits)]
    yield from ["", "## Every edge between the components of a model of over a billion weights", ""]
    yield from _paragraph(_in_a_large_model(large, fits[EDGES]))
    yield ""
    yield from _paragraph(
        """Dictionaries on every site take the most. Loaded in half precision they and the weights take half: they are widened
        where they are read, one array at a time, and what is computed is float32 all the same. Prompts beyond those that fit go in further
        batches, by `jc.discover_batches` or one call a batch. A metric that reads one position has the logits of that one; one that reads
        all positions adds 4 bytes a word, a token and a side. The lens takes one prompt at a time, and its rows what `budget` allows."""
    )


def _in_a_large_model(large: dict[str, Any], found: Fit) -> str:
    point = Point(*(large[axis] for axis in Point._fields))
    weights = point.blocks * 12 * point.width**2 + 2 * 64 * point.width**2
    inputs = 3 * point.tokens * point.blocks * point.heads * point.width
    gib = lambda size: f"{size / GIB:.3g} GiB"
    return f"""This was run: `jc.edge_attribution` of {point.batch} prompts of {point.seq} tokens, on a random model of
        {point.blocks} blocks of width {point.width:,} with {point.heads} heads, whose {weights / 1e9:.3g} billion weights take
        {gib(4 * weights)}. Measured beside them: {gib(large["peak_bytes"])}; the fit says {gib(found.expected(point))}. What the
        queries, keys and values of all heads read, each with a copy of its own, would by itself be {gib(4 * inputs)}, and as much again
        on the way back."""


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 138, break_on_hyphens=False)


def _fitted(rows: dict[str, list[dict[str, Any]]], fits: dict[str, Fit]) -> Iterator[str]:
    yield "| verb | part | bytes of each number | fitted / measured |"
    yield "|---|---|---|---|"
    for name, found in fits.items():
        points = [(Point(*(p[axis] for axis in Point._fields)), p["peak_bytes"]) for p in rows[name]]
        off = [found.expected(point) / max(peak, 1) for point, peak in points]
        yield f"| {name} | constant | {found.constant / 2**20:.1f} MiB in all | {min(off):.2f} to {max(off):.2f} |"
        for term, each in zip(found.terms, found.each, strict=True):
            most = f", at most {term.most / GIB:.2g} GiB in all" if term.most < 1e15 else ""
            yield f"| | {term.what} | {each if each > 1e-3 else 0:.3g}{most} | |"


def _planned(shape: Shape, fits: dict[str, Fit]) -> Iterator[str]:
    columns = ("stored as", "verb", "weights", "dictionaries", "one prompt", "each further prompt")
    yield f"| {' | '.join(columns)} | prompts at once in 80 GB | with a third left free |"
    yield "|---|---|---|---|---|---|---|---|"
    like = cast(Point, shape)  # it has all that terms ask of a point
    gib = lambda size: f"{size / GIB:.3g} GiB"
    for stored, itemsize in (("float32", 4), ("bfloat16", 2)):
        for name, found in fits.items():
            held = 0 if name in ("fit_lens", EDGES) else shape.dictionaries
            room = ROOM - itemsize * (shape.weights + held)
            one, more = (found.expected(like._replace(batch=n)) for n in (1, 2))
            sizes = gib(itemsize * shape.weights), gib(itemsize * held), gib(one)
            if PLAN_VERBS[name].batched:
                many = [str(found.largest(like, "batch", left)) for left in (room, room - ROOM / 3)]
                yield f"| {' | '.join([stored, name, *sizes, gib(more - one), *many])} |"
            else:
                yield f"| {' | '.join([stored, name, *sizes, 'one at a time', '1', '1'])} |"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_plan", description="Measures what prompts take.")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: that all of it runs; its numbers mean nothing"
    )
    parser.add_argument("--measured", action="store_true", help="of what was measured before, and is in --out")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for JSON (%(default)s)")
    given = parser.parse_args(argv)
    path = given.out / "memory_plan.json"
    if given.measured:
        results = json.loads(path.read_text(encoding="utf-8"))
    else:
        rows = {name: measured(name, QUICK if given.quick else POINTS) for name in PLAN_VERBS}
        (large,) = measured(EDGES, (QUICK[0] if given.quick else BILLION,))
        results = {"machine": describe("highest"), "rows": rows, "large": large}
        given.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n".join(plan(**{name: results[name] for name in ("rows", "large", "machine")})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
