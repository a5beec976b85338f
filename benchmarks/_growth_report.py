"""The growth table as markdown."""

from collections.abc import Iterator
from typing import Any

from ._growth_fit import GIB, largest
from ._growth_verbs import Point


SIZES = {"seq": "T", "batch": "B", "blocks": "L", "width": "D"}
SHAPE = {"seq": 256, "batch": 16, "blocks": 12, "width": 768}  # GPT-2-small's, and prompts
ROOMS = (24, 80)  # GiB


def table(results: dict[str, Any]) -> str:
    """What was measured on, the points, and what follows from them."""
    machine = results["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    about = (
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}. T tokens, B prompts, L blocks, D the width; "
        "of dictionaries, at every sublayer's output, every block's and the embedding, 32 D latents, one in 512 on; 64 D words."
    )
    return "\n\n".join([about, "\n".join(_fits(results["rows"])), "\n".join(_points(results["rows"]))]) + "\n"


def _fits(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Powers, and what fits of GPT-2-small's shape."""
    names = [f"fits into {room} GiB" for room in ROOMS]
    yield from _head(["verb", "time grows as", "memory grows as", "what bounds it", *names])
    for row in rows:
        fits = (_largest(row, room) for room in ROOMS)
        yield _join(
            row["name"], *(_powers(row["exponents"][of]) for of in ("seconds", "peak_bytes")), row["bound"], *fits
        )


def _powers(powers: dict[str, float]) -> str:
    return " ".join(f"{SIZES[axis]}^{power:.1f}" for axis, power in powers.items())


def _largest(row: dict[str, Any], room: int) -> str:
    """The longest prompts, and the most of `SHAPE`'s length, that memory of `room` GiB has place for."""
    base, like = Point(**row["base"]), SHAPE
    batched = len({point["batch"] for point in row["points"]}) > 1
    say = lambda symbol, found: f"any {symbol}" if found is None else f"{symbol} {found}"
    if not batched:
        return say("T", largest(row["points"], base, {**like, "batch": 1}, "seq", room * GIB))
    longest = largest(row["points"], base, like, "seq", room * GIB)
    most = largest(row["points"], base, like, "batch", room * GIB)
    return f"{say('T', longest)} at B {like['batch']}; {say('B', most)} at T {like['seq']}"


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
