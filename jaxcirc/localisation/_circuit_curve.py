"""The result of `jc.circuit_curve`."""

import dataclasses
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from .._checks import check_choice, check_count, check_seed
from .._shown import Shown
from ._areas import cmd, cpr, mean_over_log
from ._given import By


if TYPE_CHECKING:
    import pandas as pd

SUMMARY = ("cpr", "cmd", "acc_auc")
_AT_ONCE = 2**22  # weights of examples in resamples that are in memory at a time


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CircuitCurve(Shown):
    r"""How much of a behaviour circuits of increasing size carry.

    With $m$ the mean of the metric over examples, of the circuit, of the full model, and with every edge ablated,
    $$f = \frac{m(\text{circuit}) - m(\text{empty})}{m(\text{full}) - m(\text{empty})}.$$

    **Attributes:**

    - `sizes` `[size]`: shares of all edges, or of all senders. - `edges`: how many edges were chosen. - `kept`: how many of these are left
      when those that lead nowhere are dropped.
    - `values` `[size batch]`, `full`, `empty` `[batch]`: the metric of every example.
    - `by`: how edges were ranked, `None` where the circuits were given.
    """

    sizes: Float[np.ndarray, " size"]
    edges: Int[np.ndarray, " size"]
    kept: Int[np.ndarray, " size"]
    values: Float[np.ndarray, "size batch"]
    full: Float[np.ndarray, " batch"]
    empty: Float[np.ndarray, " batch"]
    by: By | None

    @property
    def faithfulness(self) -> Float[np.ndarray, " size"]:
        """The ratio of means above; 1 is the full model's, and more than that where parts that hurt are left out."""
        return self._statistics(self._alike)["faithfulness"][0]

    @property
    def accuracy(self) -> Float[np.ndarray, " size"]:
        """The share of examples with a metric above 0: of a difference of logits, those where the answer wins."""
        return self._statistics(self._alike)["accuracy"][0]

    @property
    def cpr(self) -> float:
        """The circuit performance ratio: the area under faithfulness over the share of edges. A large circuit counts most, a small hardly:
        from a half to all of the edges is half of the area. Take it from a curve by `"signed"` scores.
        """
        return float(self._statistics(self._alike)["cpr"][0])

    @property
    def cmd(self) -> float:
        """The circuit-model distance: the area between faithfulness and 1. Take it from a curve by `"absolute"` scores."""
        return float(self._statistics(self._alike)["cmd"][0])

    @property
    def acc_auc(self) -> float:
        """The mean of accuracy over the logarithm of the size, in which small circuits count as much as large ones."""
        return float(self._statistics(self._alike)["acc_auc"][0])

    def interval(
        self, of: str, *, level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """Percentiles of the bootstrap: examples are drawn with replacement, and all means, of the full and the empty circuit too, are over
        the same draw. CMD is a distance, and larger on a draw than on all examples: where these are few its interval may lie above it.

        **Arguments:** - `of`: `"faithfulness"` or `"accuracy"`, `[size]`, or a scalar, `"cpr"`, `"cmd"` or `"acc_auc"`. - `draws`: how
        many.

        **Returns:** its low and its high end.

        **Raises:** `ValueError` for a single example, which says nothing of others.
        """
        check_choice("CircuitCurve.interval: of", of, ("faithfulness", "accuracy", *SUMMARY))
        low, high = self._ends(level, draws, seed)[of]
        return np.asarray(low), np.asarray(high)

    def table(self, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> "pd.DataFrame":
        """A row a size: `size`, `edges`, `kept`, `metric`, `faithfulness`, `accuracy`, and the ends of their intervals, NaN for a single
        example.
        """
        import pandas as pd

        nothing = np.full(len(self.sizes), np.nan)
        ends = self._ends(level, draws, seed) if len(self.full) > 1 else {}
        columns = {"size": self.sizes, "edges": self.edges, "kept": self.kept, "metric": self.values.mean(1)}
        for name in ("faithfulness", "accuracy"):
            low, high = ends.get(name, (nothing, nothing))
            columns |= {name: getattr(self, name), f"{name}_low": low, f"{name}_high": high}
        return pd.DataFrame(columns)

    def summary(
        self, *, level: float = 0.95, draws: int = 2000, seed: int = 0
    ) -> dict[str, tuple[float, float, float]]:
        """`cpr`, `cmd` and `acc_auc`, each with the low and the high end of its interval, NaN for a single example."""
        ends = self._ends(level, draws, seed) if len(self.full) > 1 else dict.fromkeys(SUMMARY, (np.nan, np.nan))
        return {name: (getattr(self, name), float(ends[name][0]), float(ends[name][1])) for name in SUMMARY}

    @property
    def _alike(self) -> Float[np.ndarray, "1 batch"]:
        return np.full((1, len(self.full)), 1 / len(self.full))

    def _ends(self, level: float, draws: int, seed: int) -> dict[str, tuple[Any, Any]]:
        if not 0 < level < 1:
            raise ValueError(
                f"CircuitCurve: level is how often the interval holds the true value, such as 0.95; got {level!r}."
            )
        check_count("CircuitCurve: draws", "times examples are drawn", draws, least=2)
        check_seed("CircuitCurve: seed", seed)
        batch = len(self.full)
        if batch < 2:
            raise ValueError("CircuitCurve: an interval over examples takes two of them or more, got 1.")
        rng, each = np.random.default_rng(seed), max(_AT_ONCE // batch, 1)
        sizes = [min(each, draws - first) for first in range(0, draws, each)]
        parts = [self._statistics(rng.multinomial(batch, np.full(batch, 1 / batch), size) / batch) for size in sizes]
        quantiles = ((1 - level) / 2, (1 + level) / 2)
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: tuple(np.quantile(values, quantiles, axis=0)) for name, values in found.items()}

    def _statistics(self, weights: Float[np.ndarray, "draw batch"]) -> dict[str, np.ndarray]:
        """Computes everything with the examples so weighted: `[draw size]` or `[draw]`."""
        # [draw batch] · [batch size] -> [draw size]
        mean, full, empty = weights @ self.values.T, weights @ self.full, weights @ self.empty
        with np.errstate(
            divide="ignore", invalid="ignore"
        ):  # of a draw in which the full and the empty model are the same
            faithfulness = (mean - empty[:, None]) / (full - empty)[:, None]
        accuracy = weights @ (self.values > 0).T.astype(np.float64)
        areas = {"cpr": cpr(self.sizes, faithfulness), "cmd": cmd(self.sizes, faithfulness)}
        return {
            "faithfulness": faithfulness,
            "accuracy": accuracy,
            **areas,
            "acc_auc": mean_over_log(self.sizes, accuracy),
        }
