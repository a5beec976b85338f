"""Exact node effects: each node patched by itself, and the model run from there."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._metrics import Metric
from .._sites import BySite, Site
from ..graph import entry, written
from ..models import check_known, Transformer
from ..runs import in_groups, metric_of_variants, Problem, resume, rounded_up
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
        packs, acts, error = pack_columns(problem.saes, at, everything), BySite(), BySite()
        vectors = {site: pack.vectors(problem.saes[site]) for site, pack in packs.items()}
        differing = {site: np.nonzero(np.asarray(each).any(-1)) for site, each in vectors.items()}
        most = rounded_up(max(len(rows) for rows, _ in differing.values()), steps=8)
        for site, (rows, columns) in differing.items():
            nodes, changes = packs[site].nodes, written(model, site, vectors[site][rows, columns])
            there, units = nodes.positions[rows, columns], nodes.units[rows, columns]
            after = self._after(model, problem.metric, at, entry(model, site), (rows, there, changes), most)
            effects = np.zeros((*problem.clean.shape, problem.saes[site].d_sae + 1), after.dtype)
            effects[rows, there, units] = after - np.asarray(at.clean)[rows]
            acts[site], error[site] = jnp.asarray(effects[..., :-1]), jnp.asarray(effects[..., -1])
        return dataclasses.replace(found, acts=acts, error=error)

    @property
    def words(self) -> str:
        return "exact patching"

    def heads(self, model: Transformer, problem: Problem) -> HeadEffects:
        check_known("ExactPatching of heads", model, "attn")
        at = head_states(model, problem)
        effects = patched_heads(model, problem.metric, problem.mask, at, tokens_at_once=self.tokens_at_once)
        return as_effects(effects, at, self)

    def _after(
        self, model: Transformer, metric: Metric, at: States, cut: Site, patches: tuple, most: int
    ) -> Float[np.ndarray, " patch"]:
        """The metric of prompts `rows` after changes `[patch d_model]` at single positions of the cut, both in `patches`."""
        masks, out = model.batch_masks(at.mask), np.zeros(len(patches[0]), model.activation_dtype)
        for some in in_groups(len(out), at.mask.shape[1], self.tokens_at_once, most=most):
            rows, positions, changes = (x[some] for x in patches)
            last, _ = resume(model, masks, cut, rows, _changed(at.resid[cut], rows, positions, changes))
            out[some] = metric_of_variants(model.without_blocks, metric, rows, last)
        return out


@jax.jit
def _changed(resid, rows, positions, changes) -> Float[Array, "patch seq d_model"]:
    """Adds a change to each patch's prompt, at one position."""
    return jax.vmap(lambda row, position, change: resid[row].at[position].add(change))(rows, positions, changes)
