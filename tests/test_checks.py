"""Checks of single arguments: what passes, what does not, and that the message names what the caller typed."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcirc import _checks as checks


NAN, INF = math.nan, math.inf
# Each check, values that pass, and values that do not.
CHECKS = {
    "count": (
        lambda x: checks.check_count("--most", "heads", x),
        [1, 7, np.int64(3), jnp.asarray(2)],
        [0, -1, 2.0, 1.5, NAN, True, "3", None],
    ),
    "count from 0": (lambda x: checks.check_count("--skip", "rows", x, least=0), [0, 1], [-1, 0.0, None]),
    "count or nothing": (lambda x: checks.check_optional_count("--most", "heads", x), [None, 1], [0, "3"]),
    "threshold": (
        lambda x: checks.check_threshold("--node-threshold", x),
        [0, 0.1, INF, np.float32(2), jnp.asarray(0.5)],
        [-0.1, NAN, "0.1", None, True, [0.1]],
    ),
    "number": (
        lambda x: checks.check_number("--step", x),
        [0, -1.5, np.float32(2), jnp.asarray(2)],
        [NAN, INF, -INF, "1", None, False],
    ),
    "positive": (
        lambda x: checks.check_positive("--scale", x),
        [1, 0.5, np.float32(2), jnp.asarray(0.5)],
        [0, -2.0, NAN, INF, "3", True, None],
    ),
    "share": (
        lambda x: checks.check_share("--share", "tokens", x),
        [1, 0.02, np.float64(0.5)],
        [0, -0.1, 1.1, NAN, "0.5", None],
    ),
    "choice": (lambda x: checks.check_choice("--level", x, ("nodes", "edges")), ["nodes", "edges"], ["Nodes", None, 3]),
    "thresholds": (
        lambda x: checks.check_thresholds("thresholds", x),
        [[0.1], (0, 1), np.array([0.1, 2.0])],
        [[], [0.1, -1], [NAN], 0.1, "0.1"],
    ),
    "chosen": (
        lambda x: checks.check_chosen("latents", "latents", x),
        [[], [3, 0], (np.int64(2),), range(3), np.arange(2), jnp.arange(2), [True, False], jnp.array([False, True])],
        [
            [2.7],
            [2.0],
            np.arange(2.0),
            "12",
            3,
            np.int64(3),
            [True, 2],
            np.array([0, np.nan]),
            [[1, 2]],
            [[1, 2], [3]],
            ["1"],
            None,
        ],
    ),
    "numbers": (
        lambda x: checks.check_numbers("strengths", x),
        [[-1.0, 2], np.arange(3.0), jnp.ones(2)],
        [[], [1, NAN], 1.0, "1"],
    ),
}
PASS = [(name, value) for name, (_, good, _) in CHECKS.items() for value in good]
FAIL = [(name, value) for name, (_, _, bad) in CHECKS.items() for value in bad]


@pytest.mark.parametrize(("name", "value"), PASS)
def test_what_passes(name, value):
    CHECKS[name][0](value)


@pytest.mark.parametrize(("name", "value"), FAIL)
def test_what_does_not(name, value):
    with pytest.raises((ValueError, TypeError), match=r"^(--\w|thresholds|strengths|latents).*(got|Write)"):
        CHECKS[name][0](value)


def test_lists_come_back_as_numbers():
    assert checks.check_thresholds("thresholds", np.array([0.5, 1.0])) == [0.5, 1.0]
    assert checks.check_numbers("strengths", (x for x in (1, -2))) == [1.0, -2.0]
