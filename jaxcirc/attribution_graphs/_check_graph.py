"""A graph's edges against interventions: what they predict when a latent is moved, and what the model does."""

from collections.abc import Iterable, Sequence
from typing import Any, TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_list, check_numbers
from .._edits import Scale
from .._sites import Kind, layer_of, Site
from .._traced import check_untraced
from ..models import Transformer
from ..runs import at_once
from ._changes import Change
from ._given import Transcoders
from ._graph import AttributionGraph, check_node
from ._intervene import filled_prompt, held_sites, live_sites
from ._latent_sites import find_latents, LatentSites
from ._moved_nodes import run_each, stacked, Watched
from ._of_graph import of_graph, OfGraph
from ._replaced_run import run_clean
from ._table import LATENT, LOGIT


if TYPE_CHECKING:
    import pandas as pd

NODES = 10  # are moved unless others are named


def check_graph(
    graph: AttributionGraph,
    model: Transformer,
    transcoders: Transcoders,
    nodes: Sequence[int] | Int[Any, " n"] | None = None,
    *,
    strengths: Sequence[float] = (0.0, 2.0),
    frozen: Iterable[Site | str] | None = None,
    live_from: int | None = None,
) -> "pd.DataFrame":
    r"""Moves latents of an attribution graph, one at a time, and compares what its edges predict with what the model does.

    A latent $s$ is multiplied by a strength $f$. By the graph a target's pre-activation then moves by

    $$\Delta_t = (f - 1) A_{ts} + \sum_{u\ \text{live}} A_{tu} \frac{\Delta a_u}{a_u}, \qquad \Delta a_u = \phi'_u \Delta_u,$$

    with $\phi'$ the slope of the latent's nonlinearity. With everything held, as it is by default, there are no live latents, and
    prediction and measurement are equal to rounding: that is what an edge is. With `live_from` and `frozen=()` they differ by what the
    graph leaves out: other patterns and scales, latents that go on or off, and nodes beyond those of the graph.

    **Arguments:**

    - `graph`: with the `model` and `transcoders` that it was made with.
    - `nodes`: latents, by their rows in `graph.nodes`; by default the ten of most influence.
    - `strengths`: the factors; 0 takes the latent out.
    - `frozen`, `live_from`: as to `jc.intervene`.

    **Returns:** a data frame, a row for each node, strength and target whose site comes behind the node's: `node`, `strength`, `target`,
    `edge` (0 where there is none), `predicted` and `measured` change of the target's pre-activation, or of its logit before a cap.

    **Raises:** `ValueError` for nodes that are not there, or no latents, for another model or other dictionaries; and what `jc.intervene`
    raises.

    >>> graph = jc.attribution_graph(model, None, tokens, max_nodes=100)
    >>> node = graph.nodes.index[graph.nodes["kind"] == "latent"][0]
    >>> table = jc.check_graph(graph, model, None, [node], strengths=[0.0])
    >>> bool(abs(table["measured"] - table["predicted"]).max() < 1e-3)
    True

    **Reference:** Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models", Transformer Circuits, on
    validating a graph by perturbations.
    """
    check_untraced("check_graph", model)
    factors = check_numbers("check_graph: strengths", strengths)
    found = of_graph("check_graph", graph, model, transcoders)
    chosen = _chosen(graph, nodes)
    latents = find_latents("check_graph", model, transcoders)
    held, live = held_sites("check_graph", model, frozen), live_sites("check_graph", model, latents, live_from)
    measured = _measured(found, model, latents, chosen, factors, held, live)
    predicted = _predicted(found, model, latents, chosen, live)
    return _frame(graph, chosen, factors, predicted, measured)


def _chosen(graph: AttributionGraph, nodes: Any) -> Int[np.ndarray, " n"]:
    """The nodes to move. **Raises:** `ValueError` for what is no latent of the graph."""
    table = graph.table
    if nodes is None:
        latents = np.flatnonzero(table.kind == LATENT)
        chosen = latents[np.argsort(-graph.whole.influence[graph.kept][latents], kind="stable")[:NODES]]
    else:
        chosen = check_list("check_graph: nodes", "rows of graph.nodes", nodes)
        for node in chosen:
            check_node("check_graph", graph, node)
            if table.kind[node] != LATENT:
                raise ValueError(
                    f"check_graph: node {node} is of kind {graph.nodes['kind'][node]}; what can be moved are latents. Take rows whose "
                    "kind is 'latent'."
                )
    if not len(chosen):
        raise ValueError("check_graph: no node was named. Give rows of graph.nodes whose kind is 'latent'.")
    return np.asarray(chosen, int)


def _measured(
    found: OfGraph,
    model: Transformer,
    latents: LatentSites,
    nodes: Int[np.ndarray, " node"],
    factors: Sequence[float],
    held: frozenset[Site],
    live: frozenset[Site],
) -> Float[np.ndarray, "node strength target"]:
    """Measures the change of every target when each node is multiplied by each factor."""
    graph, table = found.graph, found.graph.table
    tokens = np.asarray(found.prompt.linear.tokens)
    pos = table.pos - found.prompt.real.first
    seq, prompt = len(tokens), filled_prompt(model, tokens, np.ones(len(tokens), bool))
    sites = np.array(table.sites, object)[table.site]
    targets = graph.targets
    at = {site: targets[(sites[targets] == str(site)) & (table.kind[targets] == LATENT)] for site in latents.sites}
    ends = np.flatnonzero(table.kind == LOGIT)
    outputs = found.prompt.rows.readers[-1].encoder.W.T  # [output d_model]
    which = np.array(found.targets(ends)) - found.prompt.columns.outputs
    watched = Watched(
        {site: pos[of] for site, of in at.items() if len(of)},
        {site: table.unit[of] for site, of in at.items() if len(of)},
        np.asarray(seq - 1, np.int32),
        outputs[which],
    )
    record = frozenset(watched.pos)
    given = model, latents, *prompt
    state, clean = run_clean(*given, frozen=held, record=record)
    before = watched.of(state)
    changes = [
        Change(Site.parse(str(sites[node])), int(pos[node]), int(table.unit[node]), Scale(factor))
        for node in nodes
        for factor in factors
    ]
    moves, rows = stacked(latents, changes, seq, len(prompt[0]), model.activation_dtype)
    # A run holds its latents, before and behind their nonlinearity, and its logits.
    held = 2 * sum(acts.size for acts in clean.acts.values()) + state.logits.size
    together = at_once(held * state.logits.dtype.itemsize, on_cpus=1)
    after = run_each(*given, clean, moves, rows, watched, live=live, record=record, together=together)
    out = np.zeros((len(changes), len(graph.kept)))
    for site in watched.pos:
        out[:, at[site]] = np.asarray(after[0][site]) - np.asarray(before[0][site])
    out[:, ends] = np.asarray(after[1]) - np.asarray(before[1])
    return out[:, targets].reshape(len(nodes), len(factors), -1)


def _predicted(
    found: OfGraph, model: Transformer, latents: LatentSites, nodes: Int[np.ndarray, " node"], live: frozenset[Site]
) -> Float[np.ndarray, "node target"]:
    """Predicts the change of every target when each node is doubled."""
    targets, among = found.graph.targets, found.rows().astype(np.float64)
    direct = among[:, nodes].T  # [node target]
    if not live:
        return direct
    relative = _slopes(found, model, latents, live)[
        targets
    ]  # by how much of itself a target moves for its pre-activation's change
    moved, total = direct, direct
    for _ in range(2 * model.n_layers):
        # What is moved itself is not moved by others.
        own = targets[None, :] == nodes[:, None]
        moved = np.where(own, 0, moved * relative) @ among[:, targets].T
        total = total + moved
    return total


def _slopes(
    found: OfGraph, model: Transformer, latents: LatentSites, live: frozenset[Site]
) -> Float[np.ndarray, " node"]:
    """Of live latents the derivative of the activation by the pre-activation, over the activation; 0 for other nodes."""
    table, linear = found.graph.table, found.prompt.linear
    out = np.zeros(len(table))
    sites = np.array(table.sites, object)[table.site]
    for site in live:
        here = np.flatnonzero((sites == str(site)) & (table.kind == LATENT))
        if len(here):
            read = latents.observed(site)
            x = linear.values(layer_of(site), read.kind)[read.kind]
            slopes = np.asarray(
                _slopes_of_neurons(model, latents, site, x) if latents.is_neurons(site) else latents.slopes(site, x)
            )
            pos = table.pos[here] - found.prompt.real.first
            out[here] = slopes[pos, table.unit[here]] / table.activation[here]
    return out


def _slopes_of_neurons(
    model: Transformer, latents: LatentSites, site: Site, pre: Float[Array, "seq d_mlp"]
) -> Float[Array, "seq d_mlp"]:
    """The derivatives of neurons by their pre-activations; those of a gated MLP are linear, with their gates held."""
    mlp = model.blocks[layer_of(site)].mlp
    assert mlp is not None
    return jnp.ones_like(pre) if site in latents.gated else jax.jvp(mlp.act, (pre,), (jnp.ones_like(pre),))[1]


def _frame(graph, nodes, factors, predicted, measured) -> "pd.DataFrame":
    import pandas as pd

    targets, table = graph.targets, graph.table
    place = [Site.parse(site) if site else Site(None, Kind.EMBED) for site in np.array(table.sites, object)[table.site]]
    edges = np.zeros((len(graph.kept), len(graph.kept)))
    edges[targets] = graph.rows
    rows = [
        (node, factor, target, edges[target, node], (factor - 1) * predicted[i, k], measured[i, j, k])
        for i, node in enumerate(nodes)
        for j, factor in enumerate(factors)
        for k, target in enumerate(targets)
        if place[node] < place[target]
    ]
    return pd.DataFrame(rows, columns=["node", "strength", "target", "edge", "predicted", "measured"])
