"""Attribution graphs, drawn: positions by layers, nodes by influence, edges by weight and sign."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from .._checks import check_count, check_kind, check_list
from .._figures import GREY, legend, name_columns, NEGATIVE, new_figure, POSITIVE, saved, SMALL, token_names, written
from .._words import counted
from ..attribution_graphs import AttributionGraph


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {"latent": "o", "neuron": "h", "error": "D", "token": "s", "position": "^", "bias": "P", "logit": "*"}


def draw_attribution_graph(
    graph: AttributionGraph,
    path: str | Path | None = None,
    *,
    tokens: Sequence[str] | None = None,
    most_edges: int = 200,
) -> "Figure":
    """Draws the edges of most influence of an attribution graph and the nodes at their ends: from left to right the prompt's positions,
    from bottom to top embeddings, layers and logits.

    The area of a node is its influence (logits are of one size), its mark what it is; red edges are positive, blue ones negative, and
    the wider the more influence they have. A row's own bias, which is at no position, is left out.

    **Arguments:** - `path`: also writes the picture, by its suffix `.svg`, `.pdf` or `.png`. - `tokens`: the prompt's tokens as text. -
    `most_edges`: how many edges are drawn.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for another suffix, a folder that is not there, another number of tokens, and a graph without edges.

    >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=50)
    >>> type(jc.draw_attribution_graph(graph, "graph.svg", most_edges=20)).__name__
    'Figure'
    """
    target = written("draw_attribution_graph", path)
    check_kind("draw_attribution_graph: graph", graph, AttributionGraph, "what jc.attribution_graph gives")
    check_count("draw_attribution_graph: most_edges", "edges to draw", most_edges)
    ids = graph.meta["tokens"]
    given = ids if tokens is None else check_list("draw_attribution_graph: tokens", "texts", tokens)
    if len(given) != len(ids):
        raise ValueError(
            f"draw_attribution_graph: tokens are the prompt's {len(ids)} tokens as text, got {len(given)}."
        )
    texts = token_names([str(each) for each in given])
    edges = _drawn(graph, most_edges)
    if not edges:
        raise ValueError(
            "draw_attribution_graph: the graph has no edge between nodes at positions. Make it with larger thresholds."
        )
    last = int(graph.table.layer.max())
    title = (
        f"Attribution graph of {graph.meta.get('model') or 'a model'}, 1 prompt: the {counted(len(edges), 'edge')} of most influence of "
        f"{int(graph.edges.sum())}\npatterns and norms' scales held; edges red positive, blue negative, wider with more influence"
    )
    size = max(7.0, min(0.62 * len(texts) + 2, 16.0)), max(4.0, min(0.3 * (last + 2) + 1.8, 14.0))
    figure, [axes] = new_figure(1, size, title=title)
    _draw(axes, graph, edges)
    name_columns(axes, len(texts), texts, (size[0] - 2) / len(texts))
    axes.set_xlim(-0.6, len(texts) - 0.4)
    axes.set_xlabel("token at the position", fontsize=SMALL)
    axes.set_ylabel("layer", fontsize=SMALL)
    return saved(figure, target)


def _drawn(graph: AttributionGraph, most: int) -> list[tuple[int, int, float]]:
    """The edges of most influence between nodes that have a position: target, source, weight."""
    there = graph.nodes["pos"].to_numpy() >= 0
    # Each row has at most one edge from a node without a position, its own bias.
    some = graph.strongest(most + len(graph.targets))
    return [(t, s, graph.weight(t, s)) for t, s in some.tolist() if there[t] and there[s]][:most]


def _draw(axes: "Axes", graph: AttributionGraph, edges: list[tuple[int, int, float]]) -> None:
    used = np.unique([end for target, source, _ in edges for end in (target, source)]).astype(int)
    x, y = _places(graph, used)
    where = {int(node): i for i, node in enumerate(used)}
    for rank, (target, source, weight) in reversed([*enumerate(edges)]):  # those of most influence on top
        ends, share = [where[source], where[target]], 1 - rank / len(edges)
        colour = POSITIVE if weight > 0 else NEGATIVE
        axes.plot(x[ends], y[ends], color=colour, linewidth=0.4 + 1.8 * share**2, alpha=0.3 + 0.6 * share, zorder=1)
    nodes = graph.nodes.iloc[used]
    size = 12 + 160 * (nodes["influence"] / max(float(graph.nodes["influence"].to_numpy().max()), 1e-30)).to_numpy()
    size[(nodes["kind"] == "logit").to_numpy()] = 120
    words = np.array([graph.table.word(i) for i in used.tolist()])
    for kind, mark in MARKS.items():
        some = words == kind
        if some.any():
            axes.scatter(
                x[some],
                y[some],
                s=size[some],
                marker=mark,
                color=GREY,
                edgecolors="white",
                linewidths=0.5,
                label=kind,
                zorder=2,
            )
    for name, colour in (("positive", POSITIVE), ("negative", NEGATIVE)):
        axes.plot([], [], color=colour, linewidth=1.5, label=f"{name} edge")
    legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    last = int(graph.table.layer.max())
    axes.set_yticks(range(-1, last + 1), ["embedding", *map(str, range(last)), "logits"])


def _places(
    graph: AttributionGraph, used: Int[np.ndarray, " node"]
) -> tuple[Float[np.ndarray, " node"], Float[np.ndarray, " node"]]:
    """Where nodes stand: at their position and layer, those of one place beside each other, the most influential in the middle."""
    nodes = graph.nodes.iloc[used]
    x, y = nodes["pos"].to_numpy(float), nodes["layer"].to_numpy(float)
    influence = nodes["influence"].to_numpy()
    for place in {*zip(x, y, strict=True)}:
        here = np.flatnonzero((x == place[0]) & (y == place[1]))
        here = here[np.argsort(-influence[here], kind="stable")]
        beside = np.array([(i + 1) // 2 * (1 if i % 2 else -1) for i in range(len(here))])
        x[here] += 0.8 * beside / max(len(here), 4)
        y[here] += 0.12 * (np.arange(len(here)) % 3 - 1) * (len(here) > 1)
    return x, y
