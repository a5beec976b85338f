"""All edges into single nodes: the problem in numpy, and our side of it."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.edges import edges_into_each

from ._circuits import make_model as make_blocks
from ._ours import make_model
from ._problems import Blocks


PARTS = ("neuron", "q", "k", "v")


class NodeEdges(NamedTuple):
    """A model, a prompt, the metric's two tokens, and nodes `(part, layer, unit, position, key)`; of neurons there is no key."""

    blocks: Blocks
    tokens: np.ndarray
    answer: int
    foil: int
    nodes: list[tuple[str, int, int, int, int]]


def make_node_edges(*, layers: int, d_model: int, heads: int, seq: int, vocabulary: int, nodes: int) -> NodeEdges:
    """As many nodes of each part, in a third, two thirds and all of the depth."""
    blocks = make_blocks(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    rng = np.random.default_rng(3)
    depths = sorted({max(1, layers // 3), max(1, 2 * layers // 3), layers - 1})
    chosen = []
    for number in range(nodes):
        part, layer = PARTS[number % 4], depths[number // 4 % len(depths)]
        position = int(rng.integers(seq // 2, seq))
        unit = int(rng.integers(4 * d_model if part == "neuron" else heads))
        chosen.append((part, layer, unit, position, int(rng.integers(position + 1))))
    return NodeEdges(blocks, rng.integers(0, vocabulary, seq).astype(np.int32), 1, 2, chosen)


def node_of(node: tuple[str, int, int, int, int]) -> jc.Neuron | jc.Head:
    part, layer, unit, position, key = node
    if part == "neuron":
        return jc.Neuron(layer, position, unit)
    return jc.Head(layer, unit, position, key, part)  # pyright: ignore[reportArgumentType]  # one of the parts above


def run(problem: NodeEdges):
    """A run of all nodes, before their activation functions, where each reads one position."""
    given = make_model(problem.blocks), jnp.asarray(problem.tokens), jc.LogitDiff(problem.answer, problem.foil)
    nodes = [node_of(node) for node in problem.nodes]
    return lambda: edges_into_each(*given, nodes, activation="pre")


def numbers(found: list[jc.EdgesInto]) -> np.ndarray:
    """`[node edge]`: from neurons, heads and tokens, at the one position that each node reads."""
    parts = lambda each: (each.neurons_at_rows, each.heads_at_rows, each.tokens_at_rows)
    return np.stack([np.concatenate([np.asarray(x).reshape(-1) for x in parts(each)]) for each in found])


def check(problem: NodeEdges, edges: np.ndarray, *, most: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The edges from the tokens into a few nodes, and the same by pushing what each token writes forward."""
    model, tokens = make_model(problem.blocks), jnp.asarray(problem.tokens)
    metric = jc.LogitDiff(problem.answer, problem.foil)
    got, want = [], []
    for number in range(min(most, len(problem.nodes))):
        part, layer, unit, position, key = problem.nodes[number]
        row = key if part in ("k", "v") else position
        out = jc.edges_out_of(model, tokens, metric, jc.Token(row), activation="pre")
        found = (
            out.neurons[layer, position, unit] if part == "neuron" else getattr(out, part)[layer, unit, position, key]
        )
        want.append(float(found))
        got.append(edges[number, -1])
    return np.array(got), np.array(want)
