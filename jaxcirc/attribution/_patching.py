"""Exact node effects: each node patched by itself, and the model run from there."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Add
from .._metrics import Metric
from .._run import run
from .._sites import BySite, Site
from ..models import Transformer
from ._after import halves_after, metric_after
from ._effects import effects_of, NodeEffects
from ._heads import AbstractHeadMethod, as_effects, HeadEffects, HeadStates, layers_and_parts, PARTS
from ._methods import AbstractMethod, Gradient
from ._packs import pack_columns
from ._prepare import Problem
from ._states import States
from ._wiring import entry, written


class ExactPatching(AbstractMethod, AbstractHeadMethod):
    """Activation patching of every node by itself: the metric with this one node as in the corrupt run, less the clean metric (Meng et
    al. 2022, arXiv 2202.05262; for latents and errors Marks et al. 2024, arXiv 2403.19647, eq. 2).

    One run of the blocks after it for each node that differs, many at once; for the parts of heads one run of the model. Edges use the
    gradient at the clean point.

    **Arguments:** - `tokens_at_once`: how many tokens of patched runs are in flight; it changes memory and time only.
    """

    tokens_at_once: int = 8192

    def __check_init__(self):
        if self.tokens_at_once < 1:
            raise ValueError(f"ExactPatching: tokens_at_once must be at least 1, got {self.tokens_at_once}.")

    def effects(self, model: Transformer, problem: Problem, at: States) -> NodeEffects:
        # Effects need no gradient, and edges check theirs: it may vanish here.
        found = effects_of(problem.saes, at, Gradient().gradients(model, problem, at))
        everything = lambda site: np.ones((*problem.clean.shape, problem.saes[site].d_sae + 1), bool)
        acts, error = BySite(), BySite()
        for site, source in pack_columns(problem.saes, at, everything).items():
            sae, (positions, units) = problem.saes[site], (source.nodes.positions, source.nodes.units)
            vectors = source.vectors(sae)
            rows, columns = np.nonzero(np.asarray(vectors).any(-1))
            changes = written(model, site, vectors[rows, columns])
            there = positions[rows, columns]
            after = self._after(model, problem.metric, at, entry(model, site), rows, there, changes)
            effects = np.zeros((*problem.clean.shape, sae.d_sae + 1), after.dtype)
            effects[rows, there, units[rows, columns]] = after - np.asarray(at.clean)[rows]
            acts[site], error[site] = jnp.asarray(effects[..., :-1]), jnp.asarray(effects[..., -1])
        return dataclasses.replace(found, acts=acts, error=error)

    def heads(
        self,
        model: Transformer,
        tokens: Int[Array, "batch seq"],
        metric: Metric,
        mask: Bool[Array, "batch seq"],
        at: HeadStates,
    ) -> HeadEffects:
        together = max(1, self.tokens_at_once // tokens.shape[1])
        return as_effects(_patched_heads(model, tokens, metric, mask, at, together=together), at)

    def _after(
        self, model: Transformer, metric: Metric, at: States, start: Site, rows, positions, changes
    ) -> Float[np.ndarray, " patch"]:
        """The metric of prompts `rows` after `changes` `[patch d_model]` at single positions of the cut `start`."""
        count = -(-max(len(rows), 1) // 256) * 256  # few sizes, so few programs
        pad = lambda x: jnp.concatenate([jnp.asarray(x), jnp.zeros((count - len(x), *x.shape[1:]), x.dtype)])
        together = min(count, max(1, self.tokens_at_once // at.mask.shape[1]))
        patches = (pad(rows), pad(positions), pad(changes))
        out = _patched(model, metric, at.resid[start], at.mask, halves_after(model, start), *patches, together=together)
        return np.asarray(out)[: len(rows)]


@ft.partial(jax.jit, static_argnames="together")
def _patched(model, metric, resid, mask, halves, rows, positions, changes, *, together: int) -> Float[Array, " patch"]:
    def one(patch):
        row, position, change = patch
        mine = jax.tree.map(lambda x: x[row], metric)
        return metric_after(model, halves, mask[row], mine)(resid[row].at[position].add(change))

    return jax.lax.map(one, (rows, positions, changes), batch_size=together)


@ft.partial(jax.jit, static_argnames="together")
def _patched_heads(model, tokens, metric, mask, at: HeadStates, *, together: int) -> dict[str, Array]:
    """Effects `[batch layer seq head]` of each part: one run for each vector."""
    places = layers_and_parts(model)
    batch, seq = tokens.shape
    shape = (batch, len(places), seq, model.n_heads)

    def one(row, place, position, head):
        mine = lambda x: x[row]
        edits = {}
        for number, (name, layer, site) in enumerate(places):
            change = jnp.where(place == number, mine(at.differences[name])[layer, position, head], 0)
            edits[site] = Add(
                jnp.zeros((seq, model.n_heads, model.d_head), change.dtype).at[position, head].set(change)
            )
        return jax.tree.map(mine, metric)(run(model, mine(tokens), edits=edits, mask=mine(mask))[0])

    index = jnp.indices(shape).reshape(4, -1)
    after = jax.lax.map(lambda each: one(*each), tuple(index), batch_size=min(together, index.shape[1]))
    moved = after.reshape(shape) - at.metrics[0][:, None, None, None]
    return dict(zip(PARTS, jnp.moveaxis(moved.reshape(batch, len(PARTS), -1, *shape[2:]), 1, 0), strict=True))
