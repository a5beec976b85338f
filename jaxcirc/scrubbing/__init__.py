"""Causal scrubbing: hypotheses about a computation as trees of claims, tested by resampling all that they say does not matter."""

from ._claim import Claim as Claim
from ._file import load_hypothesis as load_hypothesis, save_hypothesis as save_hypothesis
from ._result import ClaimRow as ClaimRow, Scrub as Scrub
from ._samplers import (
    AbstractSampler as AbstractSampler,
    Conditional as Conditional,
    Exact as Exact,
    Fixed as Fixed,
    Pool as Pool,
    Shared as Shared,
    Unconditional as Unconditional,
    UnconditionalTogether as UnconditionalTogether,
)
from ._scrub import scrub as scrub
