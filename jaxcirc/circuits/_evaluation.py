"""The result of `jc.evaluate`."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True)
class Evaluation:
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

    def interval(
        self, of: str = "faithfulness", *, level: float = 0.95, samples: int = 2000, seed: int = 0
    ) -> tuple[float, float]:
        """A bootstrap confidence interval over prompts, of `"faithfulness"` or `"completeness"` (Efron 1979, percentiles)."""
        if of not in ("faithfulness", "completeness"):
            raise ValueError(f"Evaluation.interval: of must be 'faithfulness' or 'completeness', got {of!r}.")
        n = len(self.per_prompt["full"])
        rows = np.random.default_rng(seed).integers(0, n, (samples, n))
        mean = {name: values[rows].mean(1) for name, values in self.per_prompt.items()}
        part = mean["circuit" if of == "faithfulness" else "complement"]
        found = (part - mean["empty"]) / (mean["full"] - mean["empty"])
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the single prompts, as plain JSON."""
        means = {f"m_{name}": float(values.mean()) for name, values in self.per_prompt.items()}
        return {
            **{name: getattr(self, name) for name in ("faithfulness", "completeness")},
            "faithfulness_interval": list(self.interval()),
            "completeness_interval": list(self.interval("completeness")),
            **means,
            **self.meta,
        }

    def __repr__(self) -> str:
        return (
            f"Evaluation(faithfulness={self.faithfulness:.3f}, completeness={self.completeness:.3f}, m_full={self.m_full:.3f}, "
            f"m_circuit={self.m_circuit:.3f}, m_empty={self.m_empty:.3f}, m_complement={self.m_complement:.3f})"
        )
