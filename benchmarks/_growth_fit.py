"""How what was measured grows: powers of each size, and the parts of memory, which say what problem is the largest that fits."""

import math
from typing import Any, NamedTuple

import numpy as np

from ._growth_verbs import Point, Term


AXES = Point._fields
MOST = 10**7  # of a size that memory does not grow with any number fits


def exponents(points: list[dict[str, Any]], base: Point, of: str) -> dict[str, float]:
    """The power of each size that a quantity grows with, between the two largest of the points that differ from `base` in that size alone,
    where what is constant matters least; no entry for a size that was not varied, or a quantity that is 0.
    """
    found = {}
    for axis in AXES:
        others = [(name, value) for name, value in base._asdict().items() if name != axis]
        line = [point for point in points if all(point[name] == value for name, value in others)]
        line = sorted(line, key=lambda point: point[axis])[-2:]
        if len(line) == 2 and all(point[of] > 0 for point in line):
            small, large = line
            found[axis] = math.log(large[of] / small[of]) / math.log(large[axis] / small[axis])
    return found


class Fit(NamedTuple):
    """Memory as a sum of parts: `constant` bytes, and of each term so many bytes a number, at most its own most."""

    terms: tuple[Term, ...]
    constant: float
    each: tuple[float, ...]

    def parts(self, point: Point) -> dict[str, float]:
        """The bytes of each part at a point."""
        pairs = zip(self.terms, self.each, strict=True)
        return {term.what: min(each * term.numbers(point), term.most) for term, each in pairs}

    def expected(self, point: Point) -> float:
        """The bytes at a point."""
        return self.constant + sum(self.parts(point).values())

    def bound(self, point: Point) -> str:
        """The largest part at a point."""
        parts = self.parts(point)
        return max(parts, key=parts.__getitem__)

    def largest(self, like: Point, axis: str, room: float) -> int | None:
        """The largest size along `axis`, the others as in `like`, whose memory is within `room` bytes: 0 if none is, `None` for any."""
        fits = lambda size: self.expected(like._replace(**{axis: size})) <= room
        if fits(MOST):
            return None
        low, high = 0, MOST
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def fit(points: list[dict[str, Any]], terms: tuple[Term, ...]) -> Fit:
    """Fits the parts of memory, each within its bounds, by least squares of relative errors."""
    from scipy.optimize import lsq_linear

    measured = np.array([max(point["peak_bytes"], 1) for point in points], float)
    at = [Point(*(point[axis] for axis in AXES)) for point in points]
    numbers = np.array([[1.0, *(term.numbers(point) for term in terms)] for point in at])
    bounds = zip((0.0, math.inf), *(term.each for term in terms), strict=True)
    size = np.abs(numbers / measured[:, None]).max(0)  # or the solver stops too early
    least, most = (np.array(end) * size for end in bounds)
    constant, *each = (
        lsq_linear(numbers / measured[:, None] / size, np.ones(len(points)), (least, most), method="bvls").x / size
    )
    return Fit(terms, float(constant), tuple(map(float, each)))
