"""What a greedy search found: the edges kept, and what was tried in which order."""

import dataclasses
from typing import NamedTuple, TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from .._shown import Shown
from ..graph import ComponentGraph


if TYPE_CHECKING:
    import pandas as pd


class Step(NamedTuple):
    """An edge tried: its indices `(sender, receiver)`, behind that of its position where there are positions; the metric before, and
    without it, and whether it was removed.
    """

    edge: tuple[int, ...]
    before: float
    without: float
    removed: bool

    @property
    def after(self) -> float:
        """The metric of what is left."""
        return self.without if self.removed else self.before


@dataclasses.dataclass(frozen=True, eq=False)
class GreedySearch(Shown):
    """A circuit found edge by edge.

    **Attributes:**

    - `graph`: whose edges these are. - `kept` `[sender receiver]`: the edges that are left, a mask for `jc.patch_edges`.
    - `start`: the metric's mean over the prompts with all edges. - `steps`: what was tried, in order.
    - `runs`: how many masks were run, those thrown away too; each runs all prompts from the receiver's layer on.
    """

    graph: ComponentGraph
    kept: Bool[np.ndarray, "*position sender receiver"]
    start: float
    steps: tuple[Step, ...]
    runs: int

    @property
    def metric(self) -> Float[np.ndarray, " step"]:
        """The metric's mean behind each step."""
        return np.array([step.after for step in self.steps])

    def table(self) -> "pd.DataFrame":
        """A row for each edge in the order in which they were tried: `edge`, `position` where there are positions, the metric `before` and
        `without` it, their difference `change`, and whether it was `kept`.
        """
        import pandas as pd

        names = [f"{self.graph.senders[step.edge[-2]]}->{self.graph.receivers[step.edge[-1]]}" for step in self.steps]
        columns: dict[str, list] = {"edge": names}
        if self.graph.n_positions is not None:
            columns["position"] = [step.edge[0] for step in self.steps]
        columns["before"] = [step.before for step in self.steps]
        columns["without"] = [step.without for step in self.steps]
        columns["change"] = [step.without - step.before for step in self.steps]
        columns["kept"] = [not step.removed for step in self.steps]
        return pd.DataFrame(columns)

    def __repr__(self) -> str:
        end = self.steps[-1].after if self.steps else self.start
        return (
            f"GreedySearch({int(self.kept.sum())} of {self.graph.n_edges} edges kept, metric {self.start:.4g} -> {end:.4g}, "
            f"{self.runs} runs)"
        )
