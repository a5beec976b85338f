"""Exact node effects: each node patched by itself, and the model run from there."""

import functools as ft
from collections.abc import Mapping

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_count
from .._indexing import rows_of
from .._sites import BySite, Site
from ..graph import enters, entry
from ..models import check_known, Transformer
from ..runs import metric_from, Problem, tokens_together, windows_of
from ._effects import NodeEffects
from ._heads import AbstractHeadMethod, as_effects, head_states, HeadEffects
from ._methods import AbstractMethod, Gradient
from ._node_values import node_values
from ._packs import every_node, pack_columns, Sources
from ._patched_heads import patched_heads
from ._states import States


class ExactPatching(AbstractMethod, AbstractHeadMethod):
    """Activation patching of every node by itself: the metric with this one node as in the corrupt run, less the clean metric (Meng et
    al. 2022, arXiv 2202.05262; for latents and errors Marks et al. 2024, arXiv 2403.19647, eq. 2).

    One run of the blocks after it for each node that differs, and for each vector of a head's part that differs, many at once. Edges use
    the gradient at the clean point.

    **Arguments:** - `tokens_at_once`: how many tokens of patched runs are in flight; it changes memory and time only.
    """

    tokens_at_once: int = eqx.field(static=True, default=2048)

    def __check_init__(self):
        check_count("ExactPatching: tokens_at_once", "tokens of patched runs are in flight", self.tokens_at_once)

    def effects(self, model: Transformer, problem: Problem, at: States) -> NodeEffects:
        # Effects need no gradient, and edges check theirs: it may vanish here.
        gradients = Gradient().gradients(model, problem, at)
        packs, listed = pack_columns(problem.saes, at, every_node), BySite()
        differing = {site: np.nonzero(np.asarray(_vectors(problem, site, packs)).any(-1)) for site in packs}
        index = {
            site: np.stack([each[0], packs[site].nodes.positions[each], packs[site].nodes.units[each]], axis=-1)
            for site, each in differing.items()
        }
        lists = [(each[:, 0], each[:, 1]) for each in index.values()]
        windows = windows_of(model, problem.metric, problem.clean.shape[1], sum(len(rows) for rows, _ in lists))
        caches = windows.caches(model, at.resid)
        masks, clean = model.batch_masks(problem.mask), np.asarray(at.clean)
        groups_of = windows.groups(lists, tokens_together(model, windows.seq, self.tokens_at_once))
        for (site, each), groups in zip(differing.items(), groups_of, strict=True):
            value = at.values[site][*index[site].T[:2]]
            cut, changes = entry(model, site), enters(model, site, value, _vectors(problem, site, packs)[each]).at(1)
            effects = np.zeros(len(index[site]), model.activation_dtype)
            for numbers, size in groups:
                rows, there, _ = index[site][numbers].T
                window = windows.window(there, size, caches)
                resid = _changed(at.resid[cut], rows, there, rows_of(changes, numbers), window.first, size=size)
                after = metric_from(model, problem.metric, masks, cut, rows, resid, window)
                effects[numbers] = np.asarray(after) - clean[rows]
            listed[site] = node_values(index[site], effects, problem.clean.shape, problem.saes[site].d_sae)
        return NodeEffects(listed, BySite(gradients), at)

    @property
    def words(self) -> str:
        return "exact patching"

    def heads(self, model: Transformer, problem: Problem) -> HeadEffects:
        check_known("ExactPatching of heads", model, "attn")
        at = head_states(model, problem)
        effects = patched_heads(model, problem.metric, problem.mask, at, tokens_at_once=self.tokens_at_once)
        return as_effects(effects, at, self)


def _vectors(problem: Problem, site: Site, packs: Mapping[Site, Sources]) -> Float[Array, "batch column width"]:
    """What the nodes at a site write; made anew each time, as those of all sites would take much memory."""
    return packs[site].vectors(problem.saes[site])


@ft.partial(jax.jit, static_argnames="size")
def _changed(resid, rows, positions, changes, first, *, size: int) -> Float[Array, "patch seq d_model"]:
    """Adds a change to each patch's prompt, at one position; of `size` positions from its `first` on."""

    def one(row, position, change, first):
        return jax.lax.dynamic_slice_in_dim(resid[row], first, size).at[position - first].add(change)

    return jax.vmap(one)(rows, positions, changes, first)
