"""Which heads carry an edge of an attribution graph."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count
from .._shown import Shown
from .._sites import Kind, layer_of, Site
from .._traced import check_untraced
from ..models import check_known, Transformer
from ..runs import allowance, rounded_up
from ._given import Transcoders
from ._graph import AttributionGraph
from ._heads_on_path import averages_of, parts_of_heads, values_of
from ._linear import Linearised
from ._of_graph import check_edges, of_graph
from ._prompt import Prompt
from ._rows import Covectors


if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HeadLoadings(Shown):
    """What each head of each layer carries of some edges.

    **Attributes:**

    - `edges` `[edge 2]`: target and source, as rows of `graph.nodes`; `values` `[edge]`: the edges.
    - `heads` `[edge layer head]`: what goes through a head at that layer; 0 for layers that are not on the way.
    - `bypass` `[edge layer]`: what goes past the attention of a layer, so that `heads[e, l].sum() + bypass[e, l]` is `values[e]`.
    - `on_path` `[edge layer]`: whether the layer's attention lies between source and target.
    """

    edges: Int[np.ndarray, "edge 2"]
    values: Float[np.ndarray, " edge"]
    heads: Float[np.ndarray, "edge layer head"]
    on_path: Bool[np.ndarray, "edge layer"]

    @property
    def bypass(self) -> Float[np.ndarray, "edge layer"]:
        return self.values[:, None] - self.heads.sum(-1)

    def _tables(self) -> "Mapping[str, pd.DataFrame]":
        return {".table()": self.table()}

    def table(self, most: int = 20) -> "pd.DataFrame":
        """The heads that carry most, by absolute value: a row for each edge and head, with `target`, `source`, `layer`, `head`, `loading`
        and `edge`, what they are part of.
        """
        import pandas as pd

        check_count("HeadLoadings.table: most", "rows", most)
        size = np.abs(self.heads).reshape(-1)
        order = np.argsort(-size, kind="stable")[: min(most, int((size > 0).sum()))]
        edge, layer, head = np.unravel_index(order, self.heads.shape)
        columns = {"target": self.edges[edge, 0], "source": self.edges[edge, 1], "layer": layer, "head": head}
        return pd.DataFrame({**columns, "loading": self.heads[edge, layer, head], "edge": self.values[edge]})


def head_loadings(
    graph: AttributionGraph,
    model: Transformer,
    transcoders: Transcoders,
    edges: Sequence[tuple[int, int]] | Int[np.ndarray, "edge 2"] | None = None,
    *,
    most: int = 100,
) -> HeadLoadings:
    r"""Splits edges of an attribution graph at every layer of attention that they pass: one part for each head, and what goes past.

    Between source and target a graph is linear (patterns and scales of norms are held, and no path crosses a nonlinearity), so at each
    layer in between

    $$\text{edge} = \text{bypass} + \sum_h \sum_{q,k} A^h_{qk} \langle W_O^h g_q, W_V^h v_k \rangle,$$

    with $v_k$ the source's vector where it enters that layer's attention at position $k$ and $g_q$ the covector by which the target reads
    what attention adds at $q$. A head's part is the edge with the other heads of its layer taken out, less the bypass. Parts of different
    layers are of different ways to split one edge, and do not add up: a path can pass several heads. One sweep forward of the sources'
    vectors and one backward of the targets' covectors serve all layers of many edges.

    **Arguments:**

    - `graph`: with the `model` and `transcoders` that it was made with.
    - `edges`: pairs (target, source) of rows of `graph.nodes`; by default the `most` strongest that the graph keeps.

    **Returns:** the parts, `heads` `[edge layer head]`, and what goes past, `bypass` `[edge layer]`.

    **Raises:** `ValueError` for nodes that are not there, a target into which nothing leads, another model, and other dictionaries.

    >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=100)
    >>> loadings = jc.head_loadings(graph, model, None, most=8)
    >>> loadings.heads.shape
    (8, 4, 4)

    **Reference:** Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", Transformer Circuits, on head loadings.
    Here an edge that passes several layers of attention is split at each layer by itself, which is exact and costs two sweeps, and not into
    paths of heads, of which there are many.
    """
    check_untraced("head_loadings", model)
    check_count("head_loadings: most", "edges", most)
    check_known("head_loadings", model, "attn")
    found = of_graph("head_loadings", graph, model, transcoders)
    chosen = graph.strongest(most, by="weight") if edges is None else check_edges("head_loadings", graph, edges)
    to, of = found.targets(chosen[:, 0]), found.sources(chosen[:, 1])
    heads = np.zeros((len(chosen), model.n_layers, model.n_heads), model.activation_dtype)
    for group in _groups(to, of, allowance() // _bytes_of_end(model, found.prompt.linear.seq)):
        heads[group] = parts_of_edges(found.prompt, to[group], [of[i] for i in group])
    return HeadLoadings(chosen, found.weights(*chosen.T), heads, _on_path(found.prompt, to, of))


def parts_of_edges(
    prompt: Prompt, targets: Int[np.ndarray, " edge"], sources: Sequence[Sequence[int]]
) -> Float[np.ndarray, "edge layer head"]:
    """Splits edges, by the nodes of a prompt. Each target and each source goes its way once."""
    model, n = prompt.linear.model, len(targets)
    to, which_target = np.unique(targets, return_inverse=True)
    names = sorted({tuple(each) for each in sources})
    number = {name: i for i, name in enumerate(names)}
    which_source = [number[tuple(each)] for each in sources]
    # Filled up to few sizes, so that other edges run the same programs.
    more = lambda count: rounded_up(count, steps=2) - count
    which = (np.pad(np.asarray(x, np.int32), (0, more(n))) for x in (which_target, which_source))
    which = tuple(map(jnp.asarray, which))
    to, names = np.pad(to, (0, more(len(to))), constant_values=-1), [*names, *[()] * more(len(names))]
    parts = np.zeros((n, model.n_layers, model.n_heads), model.activation_dtype)
    for layer, pattern, averages, values in at_attention(prompt, to, names):
        parts[:, layer] = np.asarray(parts_of_heads(pattern, averages, values, *which))[:n]
    return parts


def _groups(
    targets: Int[np.ndarray, " edge"], sources: Sequence[Sequence[int]], most: int
) -> Iterator[Int[np.ndarray, " group"]]:
    """Yields edges in groups of `most` different targets and sources each, or one edge."""
    group, ends = [], set()
    for edge in sorted(range(len(targets)), key=lambda edge: (targets[edge], *sources[edge])):
        mine = {(True, int(targets[edge])), (False, *sources[edge])}
        if group and len(ends | mine) > most:
            yield np.array(group)
            group, ends = [], set()
        group.append(edge)
        ends |= mine
    if group:
        yield np.array(group)


def at_attention(
    prompt: Prompt, targets: Int[np.ndarray, " target"], sources: Sequence[Sequence[int]]
) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yields layers on the way from any source to any target: the pattern, the covectors of the heads' averages of values, and the values
    that come of the sources. A target numbered -1 is none, and so is a source of no nodes.
    """
    seq = prompt.reach(targets[targets >= 0])
    vectors, covectors = prompt.vectors(sources, seq), prompt.covectors(targets, seq)
    entering = {layer_of(site): moved for site, moved in prompt.linear.push(vectors) if site.kind == Kind.RESID_PRE}
    for layer, gradient in _read_of_attention(prompt.linear, covectors):
        if layer in entering:
            here = prompt.passing(layer)
            averages, pattern = averages_of(here, gradient)
            yield layer, pattern, averages, values_of(here, entering[layer])


def _read_of_attention(
    linear: Linearised, covectors: Covectors
) -> Iterator[tuple[int, Float[Array, "target seq d_model"]]]:
    """Yields layers with the covectors by which targets read what attention makes; where latents stand for it only theirs do so."""
    for layer in linear.closed:
        if (read := covectors.get(Site(layer, Kind.ATTN_OUT))) is not None:
            yield layer, read
    for site, gradient in linear.pull(covectors):
        if site.kind == Kind.ATTN_OUT and layer_of(site) not in linear.closed:
            yield layer_of(site), gradient


def _on_path(
    prompt: Prompt, targets: Int[np.ndarray, " edge"], sources: Sequence[Sequence[int]]
) -> Bool[np.ndarray, "edge layer"]:
    """Whether each layer's attention lies between source and target."""
    layers = np.arange(prompt.linear.model.n_layers)
    first = np.array([min(map(prompt.first_layer, nodes)) for nodes in sources])
    last = np.array([prompt.last_layer(int(node)) for node in targets])
    between = (first[:, None] <= layers) & (layers <= last[:, None])
    # Where latents stand for attention only those that read its output see through it.
    open_to = ~np.isin(layers, [*prompt.linear.closed])
    reads_it = np.array([prompt.reads_attention(int(node)) for node in targets])
    return between & (open_to | (reads_it[:, None] & (layers == last[:, None])))


def _bytes_of_end(model: Transformer, seq: int) -> int:
    """What is held for an end of an edge: a vector where it enters each layer, and in one layer values or averages of them."""
    return (
        seq
        * (model.d_model * (model.n_layers + 4) + 4 * model.n_heads * model.d_head)
        * model.activation_dtype.itemsize
    )
