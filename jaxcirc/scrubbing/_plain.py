"""Plain runs: each datum run once as it is, with what claims read of it."""

import functools as ft
from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._indexing import rows_of
from .._metrics import Metric
from .._sites import Kind, Site
from ..graph import ComponentGraph
from ..models import Transformer
from ..patching._common import prompt_groups
from ..runs import block_writes, embedding_writes, metric_of_variants, Problem, record, sites_written


class Plain(eqx.Module):
    """The runs of all data.

    **Attributes:**

    - `streams[site]` `[batch seq d_model]`: the residual stream where components read it, and behind the last block.
    - `writes[name]` `[batch seq d_model]`: what senders write.
    - `masks[layer]` `[batch q_seq k_seq]`: who attends to whom.
    """

    streams: dict[Site, Float[Array, "batch seq d_model"]]
    writes: dict[str, Float[Array, "batch seq d_model"]]
    masks: tuple[Bool[Array, "batch q_seq k_seq"], ...]

    def measured(self, model: Transformer, metric: Metric) -> Float[Array, " batch"]:
        """The metric of each run."""
        last = self.streams[last_stream(model)]
        return metric_of_variants(model.without_blocks, metric, np.arange(len(last)), last)


def last_stream(model: Transformer) -> Site:
    return Site(model.n_layers - 1, Kind.RESID_POST)


def plain_runs(model: Transformer, graph: ComponentGraph, problem: Problem, names: Iterable[str], budget: int) -> Plain:
    """Runs every datum once, and keeps what these senders write and read."""
    slots = {name: graph.sender_slots[graph.sender(name)] for name in sorted(set(names))}
    layers = {max(slot.layer, 0) for slot in slots.values()}
    cuts = {Site(layer, kind) for layer in layers for kind in (Kind.RESID_PRE, model.blocks[layer].mlp_reads)}
    recorded = cuts | {site for site in sites_written(model) if site.layer is None or site.layer in layers}
    first, each, _ = graph.of_layer
    begins = {-1: 0, **{layer: first + layer * each for layer in layers}}
    numbers = [np.asarray(graph.sender(name) - begins[slot.layer], np.int32) for name, slot in slots.items()]
    kept, count = sorted({*cuts, last_stream(model)}), len(problem.clean)
    found = []
    for rows in prompt_groups(model, graph, count, problem.clean.shape[1], budget):
        tokens, mask = rows_of((problem.clean, problem.mask), rows)
        run = record(model, tokens, mask, recorded)
        blocks = {layer: block_writes(graph, model.blocks[layer], run.in_layer(layer)) for layer in layers}
        blocks[-1] = embedding_writes(
            graph, {site.kind: value for site, value in run.values.items() if site.layer is None}
        )
        writes = [_of(blocks[slot.layer], number) for slot, number in zip(slots.values(), numbers, strict=True)]
        found.append(([run.values[site] for site in kept], writes))
    streams, writes = _joined(found, count)
    return Plain(
        dict(zip(kept, streams, strict=True)), dict(zip(slots, writes, strict=True)), model.batch_masks(problem.mask)
    )


@jax.jit
def _of(writes: Float[Array, "batch sender seq d_model"], number) -> Float[Array, "batch seq d_model"]:
    """What one sender writes, by number, so that which one is no part of the program."""
    return jnp.take(writes, number, axis=1)


@ft.partial(jax.jit, static_argnums=1)
def _joined(groups: list, count: int) -> tuple[list, list]:
    """What groups of prompts have, as of all; behind the last prompt the last group is filled up."""
    return jax.tree.map(lambda *each: jnp.concatenate(each)[:count], *groups)
