"""The growth table as markdown."""

from collections.abc import Iterator
from typing import Any

from ._growth_fit import Fit, fit
from ._growth_verbs import Point, VERBS


SIZES = {"seq": "T", "batch": "B", "blocks": "L", "width": "D"}
SHAPE = Point(seq=256, batch=16, blocks=12, width=768)  # GPT-2-small's, and prompts
ROOMS, GIB = (24, 80), 2**30


def table(results: dict[str, Any]) -> str:
    """What was measured on, the points, and what follows from them."""
    machine = results["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    about = (
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}. T tokens, B prompts, L blocks, D the width; "
        "of dictionaries, at every sublayer's output, every block's and the embedding, 32 D latents, one in 512 on; 64 D words. "
        f"GPT-2-small's shape is L {SHAPE.blocks}, D {SHAPE.width}, with T {SHAPE.seq} and B {SHAPE.batch}, or one prompt where a "
        "verb takes one. Memory is beside the model, the dictionaries and programs; at that shape it is computed from a sum of parts "
        "that is fitted to the points, and some of which are held within budgets."
    )
    return "\n\n".join([about, "\n".join(_fits(results["rows"])), "\n".join(_points(results["rows"]))]) + "\n"


def _fits(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Powers, and what fits of GPT-2-small's shape."""
    fits_into = [f"fits into {room} GiB" for room in ROOMS]
    yield from _head(
        [
            *("verb", "time grows as", "memory grows as", "fitted / measured memory", "memory at GPT-2-small's shape"),
            *("what bounds it there", *fits_into),
        ]
    )
    for row in rows:
        verb = VERBS[row["name"]]
        found, like = fit(row["points"], verb.memory), SHAPE if verb.batched else SHAPE._replace(batch=1)
        fits = (_largest(found, like, room, verb.batched) for room in ROOMS)
        powers = (_powers(row["exponents"][of]) for of in ("seconds", "peak_bytes"))
        off = [found.expected(Point(*(p[axis] for axis in SIZES))) / max(p["peak_bytes"], 1) for p in row["points"]]
        there = f"{min(off):.2f} to {max(off):.2f}", f"{found.expected(like) / GIB:.2g} GiB"
        yield _join(row["name"], *powers, *there, found.bound(like), *fits)


def _powers(powers: dict[str, float]) -> str:
    return " ".join(f"{SIZES[axis]}^{power:.1f}" for axis, power in powers.items())


def _largest(found: Fit, like: Point, room: int, batched: bool) -> str:
    """The longest prompts, and the most of the shape's length, that memory of `room` GiB has place for."""
    most = lambda axis: found.largest(like, axis, room * GIB)
    say = lambda axis: f"any {SIZES[axis]}" if most(axis) is None else f"{SIZES[axis]} {most(axis)}"
    return f"{say('seq')} at B {like.batch}; {say('batch')} at T {like.seq}" if batched else say("seq")


def _points(rows: list[dict[str, Any]]) -> Iterator[str]:
    """One line a point."""
    seconds = "seconds" in rows[0]["points"][0]
    times = ["time", "compilation"] if seconds else ["time, ratio to the first", "compilation, ratio"]
    yield from _head(["verb", *SIZES.values(), *times, "programs", "peak memory"])
    for row in rows:
        for point in row["points"]:
            names = ("seconds", "compile_seconds") if seconds else ("time_ratio", "compile_ratio")
            values = (point[name] for name in names)
            shown = ["" if value is None else f"{value:.3g}" + (" s" if seconds else "") for value in values]
            sizes = (str(point[axis]) for axis in SIZES)
            yield _join(row["name"], *sizes, *shown, str(point["programs"]), f"{point['peak_bytes'] / 2**20:.1f} MiB")


def _head(names: list[str]) -> Iterator[str]:
    yield _join(*names)
    yield "|" + "---|" * len(names)


def _join(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
