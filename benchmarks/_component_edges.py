"""Edges of the component graph: a GPT-2-shaped model, random prompts in pairs, and a sample of edges, in numpy."""

from typing import NamedTuple

import numpy as np

from ._circuits import make_model, make_pairs, Pairs
from ._problems import Blocks


class Edge(NamedTuple):
    """From a sender, `embed` or the `head` or `mlp` of a layer, into a receiver, `q`, `k` or `v` of a head, `mlp` or `logits`."""

    sender: tuple[str, int, int]
    receiver: tuple[str, int, int]

    @property
    def name(self) -> str:
        return f"{_name(self.sender)}->{_name(self.receiver)}"


class ComponentEdges(NamedTuple):
    """What both sides are given; `edges` are in random order, so that the first few are as deep as all on average. Now and then one is of
    the embedding: their effects are large, and beside them the rounding of the metric is small.
    """

    blocks: Blocks
    pairs: Pairs
    edges: list[Edge]


def make_component_edges(
    *, layers: int, d_model: int, heads: int, batch: int, seq: int, vocabulary: int, edges: int | None
) -> ComponentEdges:
    """So many edges of all that there are, or all."""
    blocks = make_model(layers=layers, d_model=d_model, heads=heads, seq=seq, vocabulary=vocabulary)
    there = all_edges(layers, heads)
    chosen = [there[number] for number in np.random.default_rng(8).permutation(len(there))[:edges]]
    for number in range(0, len(chosen), 16):
        embedded = Edge(there[0].sender, chosen[number].receiver)
        if embedded not in chosen and embedded.receiver[0] != "logits":
            chosen[number] = embedded
    return ComponentEdges(blocks, make_pairs(batch, seq, vocabulary), chosen)


def all_edges(layers: int, heads: int) -> list[Edge]:
    written, out = [("embed", -1, -1)], []
    for layer in range(layers):
        out += [Edge(s, (part, layer, head)) for part in "qkv" for head in range(heads) for s in written]
        written += [("head", layer, head) for head in range(heads)]
        out += [Edge(s, ("mlp", layer, -1)) for s in written]
        written.append(("mlp", layer, -1))
    return [*out, *(Edge(s, ("logits", -1, -1)) for s in written)]


def _name(slot: tuple[str, int, int]) -> str:
    part, layer, head = slot
    names = {"head": f"a{layer}.h{head}", "mlp": f"m{layer}", **{x: f"a{layer}.h{head}.{x}" for x in "qkv"}}
    return names.get(part, part)
