"""The places in a block that hold its parts, and which of them lie between two of its sites."""

import dataclasses
from collections.abc import Collection
from typing import Any

from .._sites import Kind
from ..parts import Block


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in a block for a part: the kinds of what it reads, of what it makes, and of the first of its own sites."""

    name: str
    reads: Kind
    writes: Kind
    first: Kind
    branch: str  # of a parallel block

    def part(self, block: Block) -> Any:
        return getattr(block, self.name)

    def holds(self, kind: Kind) -> bool:
        """Whether a kind of site is of this part: inside it, or what it makes."""
        return self.first <= kind <= self.writes


def slots(block: Block) -> tuple[Slot, ...]:
    """The parts that a block has, in execution order."""
    attention = Kind.ATTN_OUT if block.ln1_post is None else Kind.HEADS_OUT
    neurons = Kind.MLP_OUT if block.ln2_post is None else Kind.NEURONS_OUT
    every = (
        Slot("ln1", Kind.RESID_PRE, Kind.ATTN_IN, Kind.LN1_SCALE, "attention"),
        Slot("attn", Kind.ATTN_IN, attention, Kind.Q, "attention"),
        Slot("ln1_post", Kind.HEADS_OUT, Kind.ATTN_OUT, Kind.LN1_POST_SCALE, "attention"),
        Slot("ln2", block.mlp_reads, Kind.MLP_IN, Kind.LN2_SCALE, "mlp"),
        Slot("mlp", Kind.MLP_IN, neurons, Kind.MLP_PRE, "mlp"),
        Slot("ln2_post", Kind.NEURONS_OUT, Kind.MLP_OUT, Kind.LN2_POST_SCALE, "mlp"),
    )
    return tuple(slot for slot in every if slot.part(block) is not None)


def slots_between(block: Block, source: Kind, target: Kind, frozen: Collection[Kind]) -> tuple[Slot, ...]:
    """The parts that may lie on a way from `source` to `target` that meets no kind of `frozen`."""
    every = slots(block)
    branches = (
        {slot.branch for kind in (source, target) for slot in every if slot.holds(kind)} if block.parallel else set()
    )
    met = lambda slot: source < slot.writes and target > slot.reads and slot.writes not in frozen
    return tuple(slot for slot in every if met(slot) and branches <= {slot.branch})
