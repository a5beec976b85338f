"""Runs with one edge patched: each the clean run up to the edge's receiver, and only what lies behind that is run.

What an edge carries changes one query, key or value of one head, or what one MLP reads. So the clean run is known up to there, that one
projection is computed anew, and the run goes on behind the receiver's sublayer.
"""

import functools as ft
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._edits import Replace
from .._metrics import Metric
from .._precision import widened
from .._sites import Kind, Site
from .._tap import bare_tap
from ..graph import ComponentGraph, entry
from ..models import Transformer
from ..parts import Block
from ..runs import (
    attend,
    feed_own,
    in_groups,
    metric_from,
    metric_of_variants,
    Recorded,
    sites_written,
    TOKENS_AT_ONCE,
    tokens_together,
    Window,
    windows_of,
)


PROJECTED: tuple[Kind, ...] = (Kind.Q, Kind.K, Kind.V)


class Patches(NamedTuple):
    """Edges patched, each by itself: of which prompt, at which position (-1: at all), from which sender into which receiver."""

    rows: Int[np.ndarray, " patch"]
    positions: Int[np.ndarray, " patch"]
    senders: Int[np.ndarray, " patch"]
    receivers: Int[np.ndarray, " patch"]

    def take(self, numbers: Int[np.ndarray, " some"]) -> "Patches":
        return Patches(*(x[numbers] for x in self))


class Clean(NamedTuple):
    """The clean run of some prompts, and by how much what senders write differs in the other one."""

    run: Recorded
    moved: Float[Array, "batch sender seq d_model"]


def sites_needed(model: Transformer) -> set[Site]:
    """What is recorded of the clean run."""
    kinds = (Kind.RESID_PRE, *PROJECTED, *((Kind.RESID_MID,) if model.blocks[0].has_middle else ()))
    return sites_written(model) | {Site(layer, kind) for layer in range(model.n_layers) for kind in kinds}


class EdgeRuns(NamedTuple):
    """What runs with edges patched need: the model as the graph has it, and the clean run of some prompts."""

    model: Transformer
    graph: ComponentGraph
    metric: Metric
    clean: Clean
    budget: int

    def run(
        self, patches: Patches, first: Int[np.ndarray, " patch"]
    ) -> Iterator[tuple[Int[np.ndarray, " some"], Float[Array, " some"]]]:
        """Yields the numbers of some patches, and the metric of each, until all have been run that can move it; `first` are the positions
        from which they differ on.
        """
        run, seq = self.clean.run, self.clean.moved.shape[2]
        windows = windows_of(self.model, self.metric, seq, len(first))
        resid = {site: value for site, value in run.values.items() if site.kind == Kind.RESID_PRE}
        caches, tokens = windows.caches(self.model, resid), self._tokens_at_once()
        yield from self._into_logits(patches, tokens)
        for behind, layers in (
            (self._behind_attention, self._into_heads(patches)),
            (self._behind_mlp, self._into_mlps(patches)),
        ):
            lists = [(patches.rows[mine], first[mine]) for mine in layers]
            for layer, groups in enumerate(windows.groups(lists, tokens, rest=4)):
                for of_layer, size in groups:
                    numbers = layers[layer][of_layer]
                    window, given = windows.window(first[numbers], size, caches), patches.take(numbers)
                    cut, resid = behind(layer, given, window, size)
                    yield numbers, metric_from(self.model, self.metric, run.masks, cut, given.rows, resid, window)

    def _into_heads(self, patches: Patches) -> list[Int[np.ndarray, " _"]]:
        """Of each layer the numbers of the patches that its queries, keys and values read."""
        slots = self._slots(patches, np.arange(self.model.n_layers)[:, None])
        return [
            np.flatnonzero(mine) for mine in (slots >= 0) & (slots < self.graph.n_heads + 2 * self.graph.n_kv_heads)
        ]

    def _into_mlps(self, patches: Patches) -> list[Int[np.ndarray, " _"]]:
        receivers = self.graph.of_layer.receivers
        layers = range(self.model.n_layers if self.graph.has_mlp else 0)
        return [np.flatnonzero(patches.receivers == (layer + 1) * receivers - 1) for layer in layers]

    def _slots(self, patches: Patches, layer) -> Int[np.ndarray, "*layer patch"]:
        """The numbers of the receivers, of which those of a layer begin with 0."""
        return patches.receivers - layer * self.graph.of_layer.receivers

    def _into_logits(self, patches: Patches, tokens: int) -> Iterator[tuple[np.ndarray, Array]]:
        """Those into the logits, without a run."""
        mine = np.flatnonzero(patches.receivers == len(self.graph.receivers) - 1)
        last = self.clean.run.last
        for some in in_groups(len(mine), last.shape[1], tokens) if len(mine) else ():
            given = patches.take(mine[some])
            resid = _read(last, self.clean.moved, given)
            yield mine[some], metric_of_variants(self.model.without_blocks, self.metric, given.rows, resid)

    def _behind_attention(
        self, layer: int, some: Patches, window: Window, size: int
    ) -> tuple[Site, Float[Array, "patch seq d_model"]]:
        """The residual stream that attention enters, with one query, key or value of one head in its place."""
        run, block = self.clean.run, self.model.blocks[layer]
        clean = {kind: run.values[Site(layer, kind)] for kind in (Kind.RESID_PRE, *PROJECTED)}
        slots = self._slots(some, layer)
        resid, edits = _placed(block, clean, self.clean.moved, some, slots, window.first, size=size)
        edits = {Site(layer, kind): Replace(value) for kind, value in edits.items()}
        after = attend(self.model, run.masks, layer, some.rows, resid, edits=edits, window=window)
        if self.graph.parallel:
            after = _beside(after, run.values[Site(layer, Kind.MLP_OUT)], some.rows, window.first)
        return entry(self.model, Site(layer, Kind.Z)), after

    def _behind_mlp(
        self, layer: int, some: Patches, window: Window, size: int
    ) -> tuple[Site, Float[Array, "patch seq d_model"]]:
        """The residual stream behind a block, with another input of its MLP."""
        block, run, behind = self.model.blocks[layer], self.clean.run, Site(layer + 1, Kind.RESID_PRE)
        read, out = run.values[Site(layer, block.mlp_reads)], run.values[Site(layer, Kind.MLP_OUT)]
        return behind, _fed(block, read, run.at_cut(behind), out, self.clean.moved, some, window.first, size=size)

    def _tokens_at_once(self) -> int:
        """Counts the tokens of variants that are run together: those for which the budget is enough, and no more than are fast."""
        model, seq = self.model, self.clean.moved.shape[2]
        # A patch has a projection's weights of its own, and is counted as a quarter of the prompt's tokens at least.
        numbers = 16 + model.d_head // max(1, seq // 4)
        fast = tokens_together(model, seq, TOKENS_AT_ONCE)
        return max(1, min(fast, self.budget // (numbers * model.d_model * model.activation_dtype.itemsize)))


def _carried(moved: Float[Array, "batch sender seq d_model"], row, position, sender) -> Float[Array, "seq d_model"]:
    """What a sender moves, at a position alone where there is one."""
    change = moved[row, sender]
    here = (position < 0) | (jnp.arange(len(change)) == position)
    return jnp.where(here[:, None], change, 0)


@ft.partial(jax.jit, static_argnames="size")
def _placed(
    block: Block, clean: dict[Kind, Array], moved, some: Patches, slots, first, *, size: int
) -> tuple[Float[Array, "patch seq d_model"], dict[Kind, Float[Array, "patch seq _ d_head"]]]:
    """Cuts the windows out of the clean stream and of the clean queries, keys and values, and puts one of them in its place, of the stream
    with what a sender moves.
    """
    attn = widened(block.attn)
    W = jnp.concatenate([attn.W_Q, attn.W_K, attn.W_V])
    b = jnp.concatenate([attn.b_Q, attn.b_K, attn.b_V])
    numbers = np.cumsum([clean[kind].shape[2] for kind in PROJECTED])[:-1]

    def one(row, position, sender, slot, first):
        ours = lambda x: jax.lax.dynamic_slice_in_dim(x, first, size)
        resid = clean[Kind.RESID_PRE][row]
        read = ours(resid + _carried(moved, row, position, sender))
        read = read if block.ln1 is None else block.ln1(read, bare_tap(0))
        joined = jnp.concatenate([ours(clean[kind][row]) for kind in PROJECTED], axis=1)
        # [seq d_model] · [d_model d_head] -> [seq d_head]
        joined = joined.at[:, slot].set(read @ W[slot] + b[slot])
        return ours(resid), dict(zip(PROJECTED, jnp.split(joined, numbers, axis=1), strict=True))

    return jax.vmap(one)(*some[:3], slots, first)


@jax.jit
def _beside(after: Float[Array, "patch seq d_model"], out: Float[Array, "batch all_seq d_model"], rows, first):
    """Adds what the MLP of a parallel block writes in the clean run."""
    ours = lambda row, first: jax.lax.dynamic_slice_in_dim(out[row], first, after.shape[1])
    return after + jax.vmap(ours)(rows, first)


@ft.partial(jax.jit, static_argnames="size")
def _fed(
    block: Block, read, behind, out, moved, some: Patches, first, *, size: int
) -> Float[Array, "patch seq d_model"]:
    """Runs an MLP on what it reads with what a sender moves, in its windows: the clean stream behind it with its output exchanged."""

    def one(row, position, sender, first):
        ours = lambda x: jax.lax.dynamic_slice_in_dim(x, first, size)
        changed = ours(read[row] + _carried(moved, row, position, sender))
        return feed_own(block, ours(behind[row] - out[row]), changed)[0]

    return jax.vmap(one)(*some[:3], first)


@jax.jit
def _read(last, moved, some: Patches) -> Float[Array, "patch seq d_model"]:
    """What the logits read with what a sender moves."""
    return last[some.rows] + jax.vmap(ft.partial(_carried, moved))(*some[:3])
