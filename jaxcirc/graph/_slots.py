"""Senders and receivers of the component graph, each by itself: what it is, its name, and where in the residual stream it stands."""

from collections.abc import Iterator
from typing import NamedTuple


class Slot(NamedTuple):
    """A sender or a receiver by what it is: `part` is `embed`, `pos_embed`, `head`, `bias` (of attention), `mlp`, `mlp_bias`, `q`, `k`,
    `v` or `logits`; without a layer or a head these are -1.
    """

    part: str
    layer: int = -1
    head: int = -1

    @property
    def name(self) -> str:
        place = {"head": f"a{self.layer}.h{self.head}", "bias": f"a{self.layer}.bias", "mlp": f"m{self.layer}"}
        place |= {"mlp_bias": f"m{self.layer}.bias", **{part: f"a{self.layer}.h{self.head}.{part}" for part in "qkv"}}
        return place.get(self.part, self.part)

    def written(self, *, parallel: bool) -> int:
        """Counts the cuts of the residual stream, two in each layer, before what a sender writes arrives."""
        if self.layer < 0:
            return -1
        return 2 * self.layer + (1 if parallel or self.part in ("mlp", "mlp_bias") else 0)

    def read(self, *, parallel: bool, layers: int) -> int:
        """The same for a receiver: it reads what is written before."""
        if self.layer < 0:
            return 2 * layers
        return 2 * self.layer + (1 if self.part == "mlp" and not parallel else 0)


class LayerShape(NamedTuple):
    """`first`: the number of the first sender in a block; how many `senders` and `receivers` are in each."""

    first: int
    senders: int
    receivers: int


def iterate_senders(layers: int, heads: int, has_mlp: bool, *, embeddings: int, biases: bool) -> Iterator[Slot]:
    """All of them, in the order in which they write."""
    yield from (Slot("embed"), Slot("pos_embed"))[:embeddings]
    for layer in range(layers):
        yield from (Slot("head", layer, head) for head in range(heads))
        if biases:
            yield Slot("bias", layer)
        if has_mlp:
            yield Slot("mlp", layer)
            if biases:
                yield Slot("mlp_bias", layer)


def iterate_receivers(layers: int, heads: int, kv_heads: int, has_mlp: bool) -> Iterator[Slot]:
    """All of them, in the order in which they read."""
    for layer in range(layers):
        for part in "qkv":
            yield from (Slot(part, layer, head) for head in range(heads if part == "q" else kv_heads))
        if has_mlp:
            yield Slot("mlp", layer)
    yield Slot("logits")
