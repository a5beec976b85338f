"""What scrubbing gives: the metric of each resampled run, beside that of the runs that it is to be told from."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple, TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from .._shown import Shown


if TYPE_CHECKING:
    import pandas as pd


class ClaimRow(NamedTuple):
    """What was drawn for a claim: its `path` in the tree; how many different `data`; in what share of all draws the reference `itself`; in
    what share its value is `equal` to what the reference has, because all below it is the reference; how many different `values`.
    """

    path: str
    data: int
    itself: float
    equal: float
    values: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scrub(Shown):
    """A scrubbed hypothesis.

    **Attributes:**

    - `values` `[sample batch]`: the metric of each example in each sample, in which all is resampled that the hypothesis allows.
    - `reference` `[batch]`: that of the plain run of the example.
    - `baseline` `[sample batch]`: that of a run of another datum, by the example's own metric: all is resampled.
    - `equal` `[sample batch]`: where what was drawn is the reference throughout, so that it says nothing.
    - `claims`: a row for each claim; `table()` has them as a table.
    - `runs`: how many components were run on inputs of their own, beside one plain run of each datum.
    """

    values: Float[np.ndarray, "sample batch"]
    reference: Float[np.ndarray, " batch"]
    baseline: Float[np.ndarray, "sample batch"]
    equal: Bool[np.ndarray, "sample batch"]
    claims: tuple[ClaimRow, ...]
    runs: int

    @property
    def mean(self) -> float:
        """The mean of `values`."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """Of the mean of `values`, as an estimate of what it is over all draws: of these examples, not of others. NaN for one sample."""
        return _standard_error(self.values)

    @property
    def recovered(self) -> float:
        r"""How much of the metric the hypothesis recovers, $(m - b) / (r - b)$ with the means $m$ of `values`, $b$ of `baseline` and $r$ of
        `reference`: 1 where nothing that it resamples matters, 0 where it is no better than none.
        """
        _, baseline, whole = self._means
        return (self.mean - baseline) / whole if whole else math.nan

    @property
    def recovered_standard_error(self) -> float:
        """Of `recovered`, to first order, from those of `values` and `baseline`."""
        mean, baseline, whole = self._means
        if not whole:
            return math.nan
        of_baseline = _standard_error(self.baseline) * (mean - baseline - whole) / whole
        return math.hypot(self.standard_error, of_baseline) / abs(whole)

    @property
    def _means(self) -> tuple[float, float, float]:
        """That of the values, of the baseline, and what there is to recover."""
        baseline = float(self.baseline.mean())
        return self.mean, baseline, float(self.reference.mean()) - baseline

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {".table()": self.table()}

    def table(self) -> "pd.DataFrame":
        """A row for each claim, parents first."""
        import pandas as pd

        return pd.DataFrame(self.claims, columns=ClaimRow._fields)


def _standard_error(values: Float[np.ndarray, "sample batch"]) -> float:
    """From the samples' means, which are independent of each other whatever examples share."""
    count = len(values)
    return float(values.mean(axis=1).std(ddof=1) / count**0.5) if count > 1 else math.nan
