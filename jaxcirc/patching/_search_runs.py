"""Runs of a search that goes from the logits back: everything before the receiver at hand is the clean run."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._indexing import rows_of
from .._metrics import Metric
from .._sites import Kind, Site
from ..graph import ComponentGraph
from ..models import Transformer
from ..runs import bytes_of_variant, Problem, record, Recorded, sites_written, worlds_from, writes_of
from ._common import at_all_positions, difference, Others, prompt_groups, some_prompts


SIZES = (1, 4, 16, 64)  # of masks run at once: each is a program for every kind of step


class _Some(NamedTuple):
    """Some prompts: how much each counts in the mean, their metric, the clean run, the other world, and how it differs."""

    shares: Float[np.ndarray, " some"]
    metric: Metric
    run: Recorded
    other: Float[Array, "some sender seq d_model"]
    moved: Float[Array, "some sender seq d_model"]


class SearchRuns:
    """The metric's mean over all prompts with edges removed.

    **Attributes:** - `start`: that with none removed. - `count`: how many masks have been run.
    """

    def __init__(self, model: Transformer, graph: ComponentGraph, problem: Problem, others: Others, budget: int):
        self.model, self.graph, self.count = model, graph, 0
        batch, seq = problem.clean.shape
        kinds = (Kind.RESID_PRE, *((Kind.RESID_MID,) if model.blocks[0].has_middle else ()))
        sites = sites_written(model) | {Site(layer, kind) for layer in range(model.n_layers) for kind in kinds}
        self._prompts: list[_Some] = []
        for rows in prompt_groups(model, graph, batch, seq, budget):
            own, _, real, metric = some_prompts(problem, rows)
            run, other = record(model, own, real, sites, metric=metric), others(rows)
            once = np.diff(rows, prepend=-1) > 0  # the last prompt may fill up its group
            moved = difference(jnp.broadcast_to(other, (len(rows), *other.shape[1:])), writes_of(model, graph, run))
            self._prompts.append(_Some(once / batch, metric, run, other, moved))
        most, each = budget // (len(self._prompts[0].shares) * bytes_of_variant(model, graph, seq)), self._prompts
        self._sizes = tuple(size for size in SIZES if size <= max(1, most))
        self._ahead = min(2, len(self._sizes) - 1)
        self.start = float(sum(some.shares @ np.asarray(some.run.metric) for some in each))
        differs = [np.asarray(_differs(some.moved)) for some in each]
        self._differs = np.logical_or.reduce([x.any(0) for x in differs])  # [seq sender]

    def carries(self, edge: tuple[int, ...]) -> bool:
        """Whether an edge carries something else in the other world; of senders before a receiver what they write is known."""
        differs = self._differs[:, edge[-2]]
        return bool(differs.any() if self.graph.n_positions is None else differs[edge[0]])

    def is_dead(self, kept: Bool[np.ndarray, "*position sender receiver"], receiver: int) -> bool:
        """Whether nothing is left that any sender which depends on a receiver writes to."""
        graph, slot = self.graph, self.graph.receiver_slots[receiver]
        if slot.part == "logits":
            return False
        block, of_mlp = self.model.blocks[slot.layer], slot.part == "mlp"
        joint = any(getattr(norm, "joint", False) for norm in (block.attn.q_norm, block.attn.k_norm))
        # The scale of a norm behind, or of all queries, is of what all heads make.
        mixes = (block.ln2_post if of_mlp else block.ln1_post) is not None or (joint and not of_mlp)
        parts = ("mlp", "mlp_bias") if of_mlp else ("head", "bias")
        beside = [sender.layer == slot.layer and sender.part in parts for sender in graph.sender_slots]
        mine = np.array(beside) if mixes else graph.reads[:, receiver]
        return not kept[..., mine, :].any()

    def removed_in_turn(
        self, kept: Bool[np.ndarray, "*position sender receiver"], edges: Sequence[tuple[int, ...]], receiver: int
    ) -> list[float]:
        """The metric without the first of some edges into a receiver, without the first two, and so on, as far as they are run ahead."""
        size = self._sizes[self._ahead]
        while size > 1 and len(edges) <= size // 2:
            size = self._sizes[self._sizes.index(size) - 1]
        edges = edges[:size]
        masks = np.stack([kept] * size)
        for number, edge in enumerate(edges):
            masks[(slice(number, None), *edge)] = False
        self.count += len(edges)
        weight = (self.graph.edges & ~masks).astype(self.model.activation_dtype)
        weight = at_all_positions(self.graph, weight, self._prompts[0].moved.shape[2])
        total = sum(self._metric(some, weight, receiver) @ some.shares for some in self._prompts)
        return [float(x) for x in np.asarray(total)[: len(edges)]]

    def adapt(self, *, all_removed: bool) -> None:
        """Runs more ahead where nothing was thrown away, and fewer where something was."""
        self._ahead = min(max(self._ahead + (1 if all_removed else -1), 0), len(self._sizes) - 1)

    def _metric(
        self, some: _Some, weight: Float[np.ndarray, "mask ..."], receiver: int
    ) -> Float[np.ndarray, "mask some"]:
        slot = self.graph.receiver_slots[receiver]
        half = slot.part == "mlp" and not self.graph.parallel
        layer = self.model.n_layers if slot.part == "logits" else slot.layer
        cut = Site(layer, Kind.RESID_MID if half else Kind.RESID_PRE)
        which, rows = np.divmod(np.arange(len(weight) * len(some.shares)), len(some.shares))
        start = rows_of((some.run.at_cut(cut), some.moved), rows)
        given = self.model, self.graph, some.run.masks, some.metric, some.other, rows, jnp.asarray(weight[which]), start
        return np.asarray(worlds_from(*given, layer=layer, half=half)).reshape(len(weight), -1)


@jax.jit
def _differs(moved: Float[Array, "batch sender seq d_model"]) -> Bool[Array, "batch seq sender"]:
    return jnp.swapaxes((moved != 0).any(-1), 1, 2)
