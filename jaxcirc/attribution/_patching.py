"""Exact node effects: each node patched by itself, and the model run from there."""

import dataclasses
import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._metrics import Metric
from .._sites import BySite, Site
from ..graph import entry, written
from ..models import Transformer
from ..runs import Problem
from ._after import halves_after, metric_after
from ._effects import effects_of, NodeEffects
from ._heads import AbstractHeadMethod, as_effects, head_states, HeadEffects
from ._methods import AbstractMethod, Gradient
from ._packs import pack_columns
from ._patched_heads import patched_heads
from ._states import States


class ExactPatching(AbstractMethod, AbstractHeadMethod):
    """Activation patching of every node by itself: the metric with this one node as in the corrupt run, less the clean metric (Meng et
    al. 2022, arXiv 2202.05262; for latents and errors Marks et al. 2024, arXiv 2403.19647, eq. 2).

    One run of the blocks after it for each node that differs, and for each vector of a head's part that differs, many at once. Edges use
    the gradient at the clean point.

    **Arguments:** - `tokens_at_once`: how many tokens of patched runs are in flight; it changes memory and time only.
    """

    tokens_at_once: int = eqx.field(static=True, default=8192)

    def __check_init__(self):
        check_count("ExactPatching: tokens_at_once", "tokens of patched runs are in flight", self.tokens_at_once)

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

    @property
    def words(self) -> str:
        return "exact patching"

    def heads(self, model: Transformer, problem: Problem) -> HeadEffects:
        at = head_states(model, problem)
        effects = patched_heads(model, problem.metric, problem.mask, at, tokens_at_once=self.tokens_at_once)
        return as_effects(effects, at, self)

    def _after(
        self, model: Transformer, metric: Metric, at: States, start: Site, rows, positions, changes
    ) -> Float[np.ndarray, " patch"]:
        """The metric of prompts `rows` after `changes` `[patch d_model]` at single positions of the cut `start`."""
        count = -(-max(len(rows), 1) // 256) * 256  # few sizes, so few programs
        pad = lambda x: jnp.pad(jnp.asarray(x), [(0, count - len(x))] + [(0, 0)] * (x.ndim - 1))
        together = min(count, max(1, self.tokens_at_once // at.mask.shape[1]))
        patches = tuple(pad(jnp.asarray(x)) for x in (rows, positions, changes))
        out = _patched(model, metric, at.resid[start], at.mask, halves_after(model, start), *patches, together=together)
        return np.asarray(out)[: len(rows)]


@ft.partial(jax.jit, static_argnames="together")
def _patched(model, metric, resid, mask, halves, rows, positions, changes, *, together: int) -> Float[Array, " patch"]:
    def one(patch):
        row, position, change = patch
        mine = jax.tree.map(lambda x: x[row], metric)
        return metric_after(model, halves, mask[row], mine)(resid[row].at[position].add(change))

    return jax.lax.map(one, (rows, positions, changes), batch_size=together)
