"""How rotary positions were made: what configurations say, and the frequencies that it comes down to."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Linear:
    """Every frequency by one factor: positions interpolated (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float

    def scaled(self, frequencies: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Low frequencies by a factor, high ones as they are, and a ramp between (Llama 3.1): a frequency counts as high by how often it turns
    in the original context.
    """

    factor: float
    low: float
    high: float
    context: int

    def scaled(self, frequencies: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
        turns = self.context * frequencies / (2 * math.pi)
        ramp = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return frequencies * (ramp + (1 - ramp) / self.factor)


@dataclasses.dataclass(frozen=True)
class Divided:
    """Each frequency by a divisor of its own, as GGUF files hold what is scaled."""

    by: tuple[float, ...]

    def scaled(self, frequencies: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
        return frequencies / np.asarray(self.by)


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Frequencies `theta^(-2 i / width)` of the first `width` coordinates of a head, scaled."""

    theta: float
    width: int
    scaling: Linear | Llama3 | Divided | None = None

    @property
    def frequencies(self) -> Float[np.ndarray, " pair"]:
        """Makes them, in radians a position."""
        plain = self.theta ** (-2 * np.arange(-(-self.width // 2), dtype=np.float64) / self.width)
        return plain if self.scaling is None else self.scaling.scaled(plain)
