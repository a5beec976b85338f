"""Scores of the edges of a component graph, and a circuit among them: what files of the benchmark hold."""

import dataclasses

import numpy as np
from jaxtyping import Array, Bool, Float

from ..graph import component_graph, ComponentGraph
from ..models import Transformer
from ._given import check_mask_of, check_scores
from ._signs import Sign, sign_of


@dataclasses.dataclass(frozen=True, eq=False)
class EdgeScores:
    """Scores of all edges of a model, as the benchmark's files hold them: over the graph with positions in every run
    (`embeddings="tokens"`) and a key and a value input for each query head (`shared="each"`).

    **Attributes:**

    - `graph`: its `ComponentGraph`. - `d_model`: the width of the model.
    - `scores` `[sender receiver]`: NaN at edges without a score, as in a file that holds a circuit alone; 0 where there is no edge.
    - `kept` `[sender receiver]`: the edges of the circuit.
    - `node_scores` `[sender]`: NaN for senders without a score of their own.

    A score above 0 is that of an edge that helps the task, as the benchmark has it: minus the effect of `jc.edge_attribution`.
    """

    graph: ComponentGraph
    d_model: int
    scores: Float[np.ndarray, "sender receiver"]
    kept: Bool[np.ndarray, "sender receiver"]
    node_scores: Float[np.ndarray, " sender"]

    @classmethod
    def of(
        cls,
        model: Transformer,
        scores: Float[Array | np.ndarray, "sender receiver"] | None = None,
        *,
        kept: Bool[Array | np.ndarray, "sender receiver"] | None = None,
    ) -> "EdgeScores":
        """Scores of a model's edges, a circuit, or both.

        **Raises:** `ValueError` for neither, for those of another graph, or a model that the files have no form for.
        """
        graph = benchmark_graph(model)
        if scores is None and kept is None:
            raise ValueError("EdgeScores.of: expected scores, or the edges that are kept, or both.")
        senders, nowhere = len(graph.senders), np.zeros(graph.edges.shape, bool)
        return cls(
            graph,
            model.d_model,
            np.where(graph.edges, np.nan, 0)
            if scores is None
            else check_scores("EdgeScores.of: scores", graph, scores),
            nowhere if kept is None else check_mask_of("EdgeScores.of: kept", graph, kept),
            np.full(senders, np.nan),
        )

    @property
    def scored(self) -> bool:
        """Whether every edge has a score."""
        return not np.isnan(self.scores).any()

    @property
    def sign(self) -> Sign:
        """What a score above 0 seems to say of an edge: that it `"helps"` the task, or that it `"hurts"`; `"none"` without scores below 0.

        `"hurts"` is said where the scores of edges into the logits and of all edges sum to far less than 0.
        """
        return sign_of(self.graph, self.scores)


def benchmark_graph(model: Transformer) -> ComponentGraph:
    """The graph of a model that the benchmark has. **Raises:** `ValueError` for a model without MLPs."""
    graph = component_graph(model, embeddings="tokens", shared="each")
    if not graph.has_mlp:
        raise ValueError(f"The benchmark's graph has an MLP in each layer, and {model.name} has none.")
    return graph
