"""How what was measured grows: powers of each size, and the largest problem that they say fits."""

import math
from collections.abc import Mapping
from typing import Any

from ._growth_verbs import Point


AXES = Point._fields
GIB = 2**30
NEVER = 10**6  # of what hardly grows with a size any number fits, as far as was measured


def exponents(points: list[dict[str, Any]], base: Point, of: str) -> dict[str, float]:
    """The power of each size that a quantity grows with, between the two largest of the points that differ from `base` in that size alone,
    where what is constant matters least; no entry for a size that was not varied, or a quantity that is 0.
    """
    found = {}
    for axis in AXES:
        line = sorted(_along(points, base, axis), key=lambda point: point[axis])[-2:]
        if len(line) == 2 and all(point[of] > 0 for point in line):
            small, large = line
            found[axis] = math.log(large[of] / small[of]) / math.log(large[axis] / small[axis])
    return found


def _along(points: list[dict[str, Any]], base: Point, axis: str) -> list[dict[str, Any]]:
    others = [(name, value) for name, value in base._asdict().items() if name != axis]
    return [point for point in points if all(point[name] == value for name, value in others)]


def expected(points: list[dict[str, Any]], base: Point, at: Mapping[str, int], powers: Mapping[str, float]) -> float:
    """The memory at another point, in bytes: from the largest that was measured along each size, by its power."""
    begin = next(point["peak_bytes"] for point in points if all(point[n] == v for n, v in base._asdict().items()))
    bytes_there = float(begin)
    for axis, power in powers.items():
        largest = max(_along(points, base, axis), key=lambda point: point[axis])
        # What was measured up to the largest, and the power from there on.
        bytes_there *= largest["peak_bytes"] / begin * (at[axis] / largest[axis]) ** power
    return bytes_there


def largest(points: list[dict[str, Any]], base: Point, like: Mapping[str, int], axis: str, room: float) -> int | None:
    """The largest size along `axis`, the others as in `like`, whose memory is within `room` bytes; `None` for any."""
    powers = exponents(points, base, "peak_bytes")
    if powers.get(axis, 0) <= 0:
        return None
    there = expected(points, base, {**like, axis: 1}, powers)
    found = (room / there) ** (1 / powers[axis])
    return None if found > NEVER else int(found)
