"""The clean run: a batch of prompts run once, with what was asked for kept."""

import functools as ft
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._metrics import Metric
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from ..models import Transformer
from ._problem import Problem
from ._resume import Edits, metric_of_variants, resume


class Recorded(eqx.Module):
    """A batch of prompts, run once.

    **Attributes:**

    - `values[site]` `[batch …]`: as downstream sees them, at the sites that were asked for and at the end of the last block.
    - `masks[layer]` `[batch q_seq k_seq]`: who attends to whom.
    - `metric` `[batch]`, where one was asked for.
    """

    values: dict[Site, Float[Array, "batch ..."]]
    masks: tuple[Bool[Array, "batch q_seq k_seq"], ...]
    measured: Float[Array, " batch"] | None

    @property
    def metric(self) -> Float[Array, " batch"]:
        if self.measured is None:
            raise ValueError("Recorded.metric: no metric was asked for. Give record(…, metric=…) one.")
        return self.measured

    def flat(self, site: Site) -> Float[Array, "batch seq width"]:
        """The value as one vector a position: a dictionary on `z` reads all heads as one."""
        value = self.values[site]
        return value.reshape(*value.shape[:2], -1)

    @property
    def last(self) -> Float[Array, "batch seq d_model"]:
        """The last residual stream."""
        return self.values[Site(len(self.masks) - 1, Kind.RESID_POST)]

    def at_cut(self, cut: Site) -> Float[Array, "batch seq d_model"]:
        """The residual stream at a cut; what would enter a block behind the last is the last."""
        return self.last if cut == Site(len(self.masks), Kind.RESID_PRE) else self.values[cut]

    def in_layer(self, layer: int) -> dict[Kind, Float[Array, "batch ..."]]:
        """What was recorded in a block, by kind, for programs that all blocks share."""
        return {site.kind: value for site, value in self.values.items() if site.layer == layer}


def record(
    model: Transformer,
    tokens: Int[Array | np.ndarray, "batch seq"],
    mask: Bool[Array | np.ndarray, "batch seq"],
    sites: Iterable[Site] = (),
    *,
    metric: Metric | None = None,
    edits: Edits = NOTHING,
) -> Recorded:
    """Runs a batch of prompts.

    **Arguments:** - `mask`: False for padding. - `sites`: of the embedding and the blocks. - `metric`: its array leaves carry the batch
    axis. - `edits`: at such sites; theirs do so too.
    """
    tokens, mask, wanted = jnp.asarray(tokens), jnp.asarray(mask), frozenset(sites)
    masks, rows = model.batch_masks(mask), np.arange(len(tokens))
    outside = frozenset(site for site in wanted if site.layer is None)
    embedding = {site: edit for site, edit in edits.items() if site.layer is None}
    resid, values = embed(model.without_blocks, tokens, mask, embedding, record=outside)
    first, last = Site(0, Kind.RESID_PRE), Site(model.n_layers - 1, Kind.RESID_POST)
    # Not recorded as others are: blocks of which the same is recorded share a program.
    resid, found = resume(model, masks, first, rows, resid, edits=edits, record=wanted - outside - {last})
    value = None if metric is None else metric_of_variants(model.without_blocks, metric, rows, resid)
    return Recorded({**values, **found, last: resid}, masks, value)


def record_sides(model: Transformer, problem: Problem, sites: Iterable[Site]) -> tuple[Recorded, Recorded | None]:
    """Runs the clean and the corrupt prompts of a problem, as one batch, so that the model is compiled once; without corrupt ones there is
    no second run.
    """
    tokens, mask, metric = _one_batch(problem.prompts(), problem.mask, problem.metric)
    both = record(model, tokens, mask, sites, metric=metric)
    return (both, None) if problem.corrupt is None else apart(both)


@jax.jit
def _one_batch(sides: Int[Array, "side batch seq"], *of_each: object) -> list[Any]:
    """The prompts of all sides, one side behind the other; and what is the same for each side as often."""
    repeat = lambda x: jnp.concatenate([x] * len(sides))
    return [sides.reshape(-1, sides.shape[-1]), *jax.tree.map(repeat, of_each)]


@jax.jit
def apart(both: Recorded) -> tuple[Recorded, Recorded]:
    """The first and the second half of a batch."""
    first = jax.tree.map(lambda x: x[: len(x) // 2], both)
    return first, jax.tree.map(lambda x: x[len(x) // 2 :], both)


@ft.partial(jax.jit, static_argnames="record")
def embed(
    ends: Transformer, tokens, mask, edits: Edits, *, record: frozenset[Site]
) -> tuple[Float[Array, "batch seq d_model"], dict[Site, Float[Array, "batch seq d_model"]]]:
    """Embeds a batch; `ends` is the model without its blocks."""

    def one(tokens, keys, edits):
        tap = Tap(NOTHING, edits, record)
        return ends.embed(tokens, tap, keys), tap.cache

    return jax.vmap(one)(tokens, mask, edits)
