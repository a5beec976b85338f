"""Our side of edges of the component graph, and its checks against runs of the whole model."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc

from ._component_edges import ComponentEdges
from ._ours import make_model


def _given(problem: ComponentEdges) -> tuple[jc.Transformer, jax.Array, jax.Array, jc.LogitDiff]:
    pairs = problem.pairs
    metric = jc.LogitDiff(*(np.full(len(pairs.clean), token) for token in (pairs.answer, pairs.foil)))
    return make_model(problem.blocks), jnp.asarray(pairs.clean), jnp.asarray(pairs.corrupt), metric


def _places(problem: ComponentEdges) -> tuple[np.ndarray, np.ndarray]:
    graph = jc.component_graph(make_model(problem.blocks))
    senders, receivers = np.transpose([graph.edge(edge.name) for edge in problem.edges])
    return senders, receivers


def exact(problem: ComponentEdges):
    """A run of the sample's edges."""
    given = _given(problem)
    wanted = np.zeros_like(jc.component_graph(given[0]).edges)
    wanted[_places(problem)] = True
    return lambda: jc.patching.exact_edges(*given, edges=wanted)


def attribution(problem: ComponentEdges):
    """A run of all edges."""
    given = _given(problem)
    return lambda: jc.edge_attribution(*given)


def numbers(problem: ComponentEdges, found) -> np.ndarray:
    """`[edge batch]`, in the sample's order."""
    return np.asarray(found)[:, *_places(problem)].T


def check_exact(problem: ComponentEdges, effects: np.ndarray, *, most: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """A few edges, and the same by runs of the whole model in which each receiver reads its own mixture."""
    given = _given(problem)
    graph, places = jc.component_graph(given[0]), np.transpose(_places(problem))[:most]
    keep = np.stack([graph.edges] * (len(places) + 1))
    for number, place in enumerate(places):
        keep[(number, *place)] = False
    after = np.asarray(jc.patch_edges(*given, keep=keep))
    return effects[: len(places)], after[:-1] - after[-1]


def check_attribution(problem: ComponentEdges, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What all edges into the logits do by gradients, and the slope of a run of the whole model in which they all move."""
    given = _given(problem)
    model = given[0]
    graph = jc.component_graph(model)
    last = graph.receiver("logits")
    into = jnp.zeros(graph.edges.shape).at[:, last].set(1)

    def moved(step: jax.Array) -> jax.Array:
        return jc.patch_edges(*given, keep=jnp.ones(graph.edges.shape) - step * into)

    slope = jax.jvp(moved, (jnp.zeros(()),), (jnp.ones(()),))[1]
    mine = [number for number, edge in enumerate(problem.edges) if edge.receiver[0] == "logits"]
    return scores[mine].sum(0), np.asarray(slope)
