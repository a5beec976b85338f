"""How much of a behaviour a circuit carries: the four runs of it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .._checks import check_choice
from .._shown import Shown
from .._typing import Progress
from ..components._intervals import jackknife_interval
from ._circuit import Circuit
from ._runs import RUNS, Runs


if TYPE_CHECKING:
    import pandas as pd


_PART = {"faithfulness": "circuit", "completeness": "complement"}  # the run whose share it is


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation(Shown):
    r"""How much of a metric a circuit carries.

    **Attributes:**

    - `m_full`, `m_circuit`, `m_empty`, `m_complement`: the mean metric of the whole model, with all but the circuit ablated, with
      everything ablated, and with the circuit ablated.
    - `per_prompt[run]` `[prompt]`: the same of each prompt, for `"full"`, `"circuit"`, `"empty"`, `"complement"`.
    - `meta`: how it was measured; plain JSON.
    """

    per_prompt: dict[str, Float[np.ndarray, " prompt"]]
    meta: dict[str, Any]

    @property
    def m_full(self) -> float:
        return float(self.per_prompt["full"].mean())

    @property
    def m_circuit(self) -> float:
        return float(self.per_prompt["circuit"].mean())

    @property
    def m_empty(self) -> float:
        return float(self.per_prompt["empty"].mean())

    @property
    def m_complement(self) -> float:
        return float(self.per_prompt["complement"].mean())

    @property
    def faithfulness(self) -> float:
        r"""$(m_{circuit} - m_{empty}) / (m_{full} - m_{empty})$: 1 if the circuit alone does what the model does."""
        return (self.m_circuit - self.m_empty) / (self.m_full - self.m_empty)

    @property
    def completeness(self) -> float:
        r"""$(m_{complement} - m_{empty}) / (m_{full} - m_{empty})$: 0 if without the circuit nothing of it is left. Low is good."""
        return (self.m_complement - self.m_empty) / (self.m_full - self.m_empty)

    def interval(self, of: str = "faithfulness", *, level: float = 0.95) -> tuple[float, float]:
        """A confidence interval over prompts, of `"faithfulness"` or `"completeness"`: Student's, with the jackknife's standard error.

        In simulations (`python -m benchmarks.coverage`) an interval of level 0.95 over 8 to 32 prompts holds the true share in 93 to 99 of
        100 cases, the fewest where prompts differ skewly; percentiles of a bootstrap do in 85 to 94. NaN for one prompt.
        """
        check_choice("Evaluation.interval: of", of, ("faithfulness", "completeness"))
        part, full, empty = (self.per_prompt[name] for name in (_PART[of], "full", "empty"))
        others = lambda x: x.sum() - x  # without each prompt
        with np.errstate(divide="ignore", invalid="ignore"):
            without = others(part - empty) / others(full - empty)
        low, high = jackknife_interval("Evaluation.interval", np.asarray(getattr(self, of)), without, level)
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single prompts, as plain JSON."""
        means = {f"m_{name}": float(values.mean()) for name, values in self.per_prompt.items()}
        return {
            **{name: getattr(self, name) for name in ("faithfulness", "completeness")},
            **{f"{name}_interval": self.listed_interval(name) for name in _PART},
            **means,
            **self.meta,
        }

    def listed_interval(self, of: str) -> list[float | None]:
        """Gives the interval in plain JSON, which has no NaN."""
        return [None if np.isnan(end) else end for end in self.interval(of)]

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        import pandas as pd

        return {"the metric of each prompt": pd.DataFrame(self.per_prompt)}

    def __repr__(self) -> str:
        return (
            f"Evaluation(faithfulness={self.faithfulness:.3f}, completeness={self.completeness:.3f}, m_full={self.m_full:.3f}, "
            f"m_circuit={self.m_circuit:.3f}, m_empty={self.m_empty:.3f}, m_complement={self.m_complement:.3f})"
        )


def evaluated(circuit: Circuit, runs: Runs, progress: Progress | None) -> Evaluation:
    """Runs a circuit in all four ways."""
    return evaluation(circuit, runs, runs.metrics(circuit, RUNS, progress))


def evaluation(circuit: Circuit, runs: Runs, per_prompt: dict[str, Float[np.ndarray, " prompt"]]) -> Evaluation:
    """Makes the result of the four runs. **Raises:** `ValueError` if ablating everything changes nothing."""
    check_explained(runs.verb, per_prompt)
    return Evaluation(per_prompt, {**runs.settings, "nodes": len(circuit.nodes), "edges": len(circuit.edges)})


def check_explained(verb: str, per_prompt: dict[str, Float[np.ndarray, " prompt"]]) -> None:
    """ValueError if ablating everything changes nothing."""
    full, empty = per_prompt["full"].mean(), per_prompt["empty"].mean()
    if abs(full - empty) <= 1e-6 * max(abs(full), abs(empty)):
        raise ValueError(
            f"{verb}: ablating every node leaves the metric at {empty:.4g}, as it is in the whole model, so there is nothing to "
            "explain. Use prompts on which clean and corrupt differ, or another ablation."
        )
