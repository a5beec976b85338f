"""Why an edge that passes attention is there: which heads carry it, between which positions, and which pairs of nodes make them attend."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from .._checks import check_count
from .._shown import Shown
from .._traced import check_untraced
from ..models import check_known, Transformer
from ._given import Transcoders
from ._graph import AttributionGraph
from ._head_loadings import at_attention
from ._heads_on_path import by_positions, parts_of_heads
from ._of_graph import check_edges, of_graph
from ._qk import attribute_score, QKAttribution


if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class HeadOnEdge:
    """A head that carries part of an edge.

    **Attributes:** - `layer`, `head`; `loading`: what goes through it. - `query`, `key`: the positions between which most of that goes, and
    `between`, how much. - `attends`: the pattern there; `score`: why, by pairs of nodes.
    """

    layer: int
    head: int
    loading: float
    query: int
    key: int
    between: float
    attends: float
    score: QKAttribution


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EdgeExplanation(Shown):
    """An edge of an attribution graph, its `value`, and its strongest `heads`, the strongest first."""

    target: int
    source: int
    value: float
    heads: tuple[HeadOnEdge, ...]

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {".table()": self.table()}

    def table(self) -> "pd.DataFrame":
        """A row for each head and each of its pairs of nodes: what the head carries and between which positions, then the pair's `value` in
        the score, and its nodes.
        """
        import pandas as pd

        names = ("layer", "head", "loading", "query", "key", "between", "attends")
        parts = []
        for each in self.heads:
            found = each.score.table()
            about = {name: [getattr(each, name)] * len(found) for name in names}
            parts.append(pd.concat([pd.DataFrame(about), found], axis=1))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def explain_edge(
    graph: AttributionGraph,
    model: Transformer,
    transcoders: Transcoders,
    target: int,
    source: int,
    *,
    heads: int = 3,
    pairs: int = 10,
) -> EdgeExplanation:
    """Explains an edge that passes attention, head by head: its strongest heads of all layers on the way (`jc.head_loadings`), for each the
    query and key between which most of that goes, and the pairs of nodes that make this head attend there (`jc.qk_attribution`).

    **Arguments:**

    - `graph`: with the `model` and `transcoders` that it was made with.
    - `target`, `source`: rows of `graph.nodes`.
    - `heads`: how many heads; `pairs`: how many pairs of nodes for each.

    **Returns:** the heads, each with its loading, positions, and the attribution of its score there; none for an edge that passes none.

    **Raises:** `ValueError` for nodes that are not there, a target into which nothing leads, another model, and other dictionaries.

    >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=100)
    >>> logit, token = (graph.nodes.index[graph.nodes["kind"] == kind][0] for kind in ("logit", "token"))
    >>> [type(each).__name__ for each in jc.explain_edge(graph, model, None, logit, token, heads=1).heads]
    ['HeadOnEdge']

    **Reference:** Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", Transformer Circuits.
    """
    check_untraced("explain_edge", model)
    check_count("explain_edge: heads", "heads", heads)
    check_count("explain_edge: pairs", "pairs", pairs)
    check_known("explain_edge", model, "attn")
    found = of_graph("explain_edge", graph, model, transcoders)
    edge = check_edges("explain_edge", graph, [(target, source)])
    to, of = found.targets(edge[:, 0]), found.sources(edge[:, 1])
    none, there = jnp.zeros(1, jnp.int32), {}
    for layer, pattern, averages, values in at_attention(found.prompt, to, of):
        loadings = np.asarray(parts_of_heads(pattern, averages, values, none, none))[0]
        passing = pattern, averages, values
        there |= {(layer, head): (float(part), passing) for head, part in enumerate(loadings) if part != 0}
    chosen = sorted(there, key=lambda at: -abs(there[at][0]))[:heads]
    explained = []
    for layer, head in chosen:
        loading, (pattern, averages, values) = there[layer, head]
        of_pairs = np.asarray(by_positions(pattern, averages[0], values[0], jnp.asarray(head, jnp.int32)))
        query, key = (int(i) for i in np.unravel_index(np.argmax(np.abs(of_pairs)), of_pairs.shape))
        score = attribute_score(found.prompt, layer, head, query, key, pairs)
        at = float(of_pairs[query, key]), float(pattern[head, query, key])
        first = found.prompt.real.first
        explained.append(HeadOnEdge(layer, head, loading, first + query, first + key, *at, score))
    return EdgeExplanation(target, source, float(found.weights(*edge.T)[0]), tuple(explained))
