"""Feature Jacobians as tables: one row a pair of latents."""

import dataclasses
from typing import NamedTuple, TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int

from .._checks import check_count
from .._shown import Shown
from .._sites import Site


if TYPE_CHECKING:
    import pandas as pd


class Correlation(NamedTuple):
    """Of |gradient| with |cosine| over `pairs` pairs: `pearson`'s of the numbers, `spearman`'s of their ranks."""

    pearson: float
    spearman: float
    pairs: int


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureJacobian(Shown):
    r"""The derivatives of latents by latents, one row a pair: `len(jacobian)` of them. Made by `jc.feature_jacobian`.

    **Attributes:** arrays `[pair]`, in the order of position, target, source position, source:

    - `position`, `source_position`: of the target's and of the source's latent; the same where pairs are at one position.
    - `source`, `target`: the numbers of the latents; `source_act`, `target_act`: their values in the run.
    - `gradient`: $\partial\,\mathrm{target\_act} / \partial\,\mathrm{source\_act}$, of the activation itself.
    - `cosine`: of the source's direction written into the residual stream and the target's read from it.

    And what it is of: the sites `source_site` and `target_site`, the `minimum`, `positions`, and the dictionaries put in place of their
    sites, `substitute`.
    """

    position: Int[np.ndarray, " pair"]
    source_position: Int[np.ndarray, " pair"]
    source: Int[np.ndarray, " pair"]
    target: Int[np.ndarray, " pair"]
    source_act: Float[np.ndarray, " pair"]
    target_act: Float[np.ndarray, " pair"]
    gradient: Float[np.ndarray, " pair"]
    cosine: Float[np.ndarray, " pair"]
    source_site: Site
    target_site: Site
    minimum: float
    positions: str
    substitute: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.gradient)

    def __repr__(self) -> str:
        replaced = " and ".join(self.substitute) or "nothing"
        return (
            f"FeatureJacobian({self.source_site} -> {self.target_site}, {len(self)} pairs, positions {self.positions!r}, latents above "
            f"{self.minimum:g}, {replaced} substituted)"
        )

    @property
    def has_cosine(self) -> bool:
        """Whether both ends have directions in the residual stream."""
        return not bool(np.isnan(self.cosine).any())

    def strongest(self, n: int) -> Int[np.ndarray, " n"]:
        """The numbers of the rows with the `n` largest |gradient|, the largest first; all, if there are no more."""
        check_count("FeatureJacobian.strongest: n", "rows", n)
        return np.argsort(-np.abs(self.gradient), kind="stable")[:n]

    def rows(self, which: Bool[np.ndarray, " pair"] | Int[np.ndarray, " n"]) -> "FeatureJacobian":
        """Some of the rows, by a mask or by their numbers."""
        chosen = np.asarray(which)
        if chosen.ndim != 1 or (chosen.dtype != bool and not np.issubdtype(chosen.dtype, np.integer)):
            raise TypeError(
                f"FeatureJacobian.rows: expected a mask of the rows, or a list of their numbers, got {which!r}."
            )
        within = len(chosen) == len(self) if chosen.dtype == bool else (np.abs(chosen + 0.5) < len(self)).all()
        if not within:
            raise ValueError(f"FeatureJacobian.rows: there are {len(self)} rows, and {which!r} is of others.")
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in COLUMNS})

    def to_pandas(self) -> "pd.DataFrame":
        """All rows as a data frame, with the arrays' names as columns."""
        import pandas as pd

        return pd.DataFrame({name: getattr(self, name) for name in COLUMNS})

    def correlation(self) -> Correlation:
        """How far the weights alone tell the size of the gradients: Pearson's and Spearman's correlation of |gradient| with |cosine|.

        **Raises:** `ValueError` for fewer than two pairs, or where an end has no direction in the residual stream.
        """
        from scipy.stats import rankdata

        sizes = [np.abs(column).astype(np.float64) for column in (self.gradient, self.cosine)]
        if len(self) < 2 or not self.has_cosine:
            why = "the cosines are not defined here" if len(self) >= 2 else "there is one pair"
            raise ValueError(f"correlation: expected two pairs or more with gradient and cosine; {why}.")
        pearson = lambda a, b: float(np.corrcoef(a, b)[0, 1])
        return Correlation(pearson(*sizes), pearson(*map(rankdata, sizes)), len(self))


COLUMNS = ("position", "source_position", "source", "target", "source_act", "target_act", "gradient", "cosine")
