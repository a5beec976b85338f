"""Padding around a prompt: what a graph is of is what is real of it, and positions count on from the prompt's own first."""

from typing import NamedTuple

import numpy as np

from .._run import check_mask
from .._typing import Keys, Tokens


class Real(NamedTuple):
    """What of a prompt is real: positions from `first` to before `end`."""

    first: int
    end: int

    @property
    def slice(self) -> slice:
        return slice(self.first, self.end)


def real_part(verb: str, tokens: Tokens, mask: Keys | None) -> Real:
    """Which positions of a prompt are no padding. **Raises:** `ValueError` for a mask that does not fit, or has gaps."""
    check_mask(tokens, mask)
    if mask is None:
        return Real(0, len(tokens))
    there = np.flatnonzero(np.asarray(mask))
    first, end = int(there[0]), int(there[-1]) + 1
    if end - first > len(there):
        missing = first + int(np.argmin(np.asarray(mask)[first:end]))
        raise ValueError(
            f"{verb}: mask: padding is before or behind a prompt, and position {missing} lies between real tokens. Leave such tokens out."
        )
    return Real(first, end)


def check_real(verb: str, real: Real, **positions: int) -> None:
    """ValueError for positions, by name, at which there is padding."""
    for name, pos in positions.items():
        if not real.first <= pos < real.end:
            raise ValueError(f"{verb}: {name} {pos} is padding; real tokens are at {real.first} to {real.end - 1}.")
