"""Lines through points: how one quantity goes with another."""

import abc

import equinox as eqx
import numpy as np
from jaxtyping import Float


# Of points (x, y): how many there are, and the sums of x, y, x x and x y.
Moments = Float[np.ndarray, "5 ..."]


class AbstractFit(eqx.Module):
    """How a line is put through points."""

    @abc.abstractmethod
    def line(self, moments: Moments) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """**Returns:** slopes and intercepts."""


class OLS(AbstractFit):
    r"""Ordinary least squares of $y$ on $x$: $y \approx a x + b$, or with `intercept=False` the line through the origin, $b = 0$.

    Where all $x$ are the same there is no slope, and it is 0.
    """

    intercept: bool = eqx.field(static=True, default=True)

    def line(self, moments):
        n, x, y, xx, xy = np.asarray(moments, np.float64)
        if not self.intercept:
            return _ratio(xy, xx), np.zeros_like(n)
        spread = n * xx - x * x
        slope = _ratio(n * xy - x * y, np.where(spread > 1e-12 * n * xx, spread, 0))
        return slope, _ratio(y - slope * x, n)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def moments(x: Float[np.ndarray, "..."], y: Float[np.ndarray, "..."], used: np.ndarray, axis: int) -> Moments:
    """Of the used points along an axis."""
    x, y = np.where(used, x, 0).astype(np.float64), np.where(used, y, 0).astype(np.float64)
    counts = np.broadcast_to(used, x.shape)
    return np.stack([counts.sum(axis), x.sum(axis), y.sum(axis), (x * x).sum(axis), (x * y).sum(axis)])
