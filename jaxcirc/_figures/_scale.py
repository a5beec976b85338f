"""What the colours of a heat map mean: signed numbers about 0, red positive and blue negative, or sizes from 0 on."""

import dataclasses
import math
from typing import Any

import numpy as np


SIGNED, LARGE_IS_DARK, SMALL_IS_DARK = "RdBu_r", "Purples", "Purples_r"
SIGNS = "red positive, blue negative"


@dataclasses.dataclass(frozen=True)
class Scale:
    """**Attributes:** - `colours`: the name of the map. - `label`: what stands beside the bar. - `most`: the size at which colours are
    full, by default the largest of the values. - `log`: from 1 on, by the logarithm.
    """

    colours: str
    label: str
    most: float | None = None
    log: bool = False

    @property
    def has_sign(self) -> bool:
        return self.colours == SIGNED

    def norm(self, values: np.ndarray) -> Any:
        """Maps values to colours; of no numbers, or of zeros alone, as if the largest were 1."""
        from matplotlib.colors import CenteredNorm, LogNorm, Normalize

        largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) if self.most is None else self.most
        largest = largest if largest > 0 and math.isfinite(largest) else 1.0
        if self.log:
            return LogNorm(1.0, max(largest, 2.0))
        return CenteredNorm(0.0, largest) if self.has_sign else Normalize(0.0, largest)


def signed(unit: str, most: float | None = None) -> Scale:
    """Of numbers with a sign, symmetric about 0."""
    return Scale(SIGNED, f"{unit}\n{SIGNS}", most)


def sizes(unit: str, most: float | None = None) -> Scale:
    """Of numbers without a sign, from 0."""
    return Scale(LARGE_IS_DARK, unit, most)


def shares(unit: str) -> Scale:
    """Of parts of a whole, from 0 to 1."""
    return sizes(unit, 1.0)


def small_is_dark(unit: str, *, log: bool = False) -> Scale:
    """Of numbers of which small ones are looked for, such as ranks."""
    return Scale(SMALL_IS_DARK, unit, log=log)
