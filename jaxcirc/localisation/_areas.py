"""Areas under curves over the size of a circuit."""

import numpy as np
from jaxtyping import Float


def area(x: Float[np.ndarray, " point"], y: Float[np.ndarray, "*curve point"]) -> Float[np.ndarray, "*curve"]:
    """Integrates by trapezoids, between the first point and the last."""
    return np.asarray(((y[..., 1:] + y[..., :-1]) / 2) @ np.diff(x))


def cpr(
    sizes: Float[np.ndarray, " size"], faithfulness: Float[np.ndarray, "*curve size"]
) -> Float[np.ndarray, "*curve"]:
    """The area under faithfulness, the larger the better, and without a bound: parts that hurt can be left out."""
    return area(sizes, faithfulness)


def cmd(
    sizes: Float[np.ndarray, " size"], faithfulness: Float[np.ndarray, "*curve size"]
) -> Float[np.ndarray, "*curve"]:
    """The area between faithfulness and 1, the smaller the better."""
    return area(sizes, np.abs(1 - faithfulness))


def mean_over_log(
    sizes: Float[np.ndarray, " size"], y: Float[np.ndarray, "*curve size"]
) -> Float[np.ndarray, "*curve"]:
    """The mean of a curve where each factor of the size counts the same."""
    x = np.log(sizes)
    return np.asarray(area(x, y) / (x[-1] - x[0]))
