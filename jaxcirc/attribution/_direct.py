"""Effects of nodes on the metric past all later ones: one way back through the blocks, on which every node is held."""

import functools as ft

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import Add
from .._sites import Kind, layer_of, Site
from ..graph import canonical, reaches_output
from ..linear import pull_batch
from ..models import Transformer
from ..runs import cut_gradients, onwards, Problem
from ._contract import Gradients
from ._effects import node_products
from ._methods import IntegratedGradients
from ._moved import step_of
from ._node_values import NodeValues
from ._states import States
from ._way_back import BlockPieces


Resid = Float[Array, "batch seq d_model"]


def direct_to_metric(
    model: Transformer, problem: Problem, at: States, gradient: Gradients, path: IntegratedGradients | None = None
) -> dict[Site, NodeValues]:
    """The effect of each node on the metric along the paths that meet no later node.

    Where there is no later node that is the node's whole effect, by the gradient of the nodes; else the clean gradient with later
    nodes held, or the mean of those on the `path`.
    """
    points = [(0.0, 1.0)] if path is None else list(zip(*path.points(), strict=True))
    from_metric = ft.cache(lambda: _FromMetric(model, problem, at))  # not made where no node has later ones
    out = {}
    for site, later in reaches_output(model, problem.saes).items():
        if later:
            to_site = from_metric().to_site
            parts = [float(weight) * to_site(site, float(fraction)) for fraction, weight in points]
            direct = ft.reduce(jnp.add, parts)
        else:
            direct = gradient[site]
        out[site] = node_products(site, problem.saes[site], at, direct)
    return out


class _FromMetric:
    """The gradient of the metric at each node with all later ones held. Blocks that are alike share a program, and in the clean run nodes
    share the way back.
    """

    def __init__(self, model: Transformer, problem: Problem, at: States):
        self.model, self.metric, self.at = model, problem.metric, at
        self.masks, self.rows = model.batch_masks(problem.mask), np.arange(len(problem.mask))
        self.clean = [at.resid[Site(layer, Kind.RESID_PRE)] for layer in range(model.n_layers + 1)]
        self.pieces = BlockPieces(model, self.masks, problem.saes, self.clean[0])
        # Of the clean run the gradient behind the last block, and behind each one before that.
        self.known: list[Resid] = []

    def to_site(self, site: Site, fraction: float) -> Float[Array, "batch seq width"]:
        """Computes it at a node's site, with so much added there of what differs in the corrupt run."""
        start = canonical(site)
        layer = layer_of(start)
        if fraction == 0:
            return self._pulled(start, self.clean[layer], None, self._behind_clean(layer + 1))
        change = step_of(self.model, self.at, site, fraction)
        enters = Site(layer, Kind.RESID_PRE)
        moved = onwards(self.model, self.masks, enters, self.rows, self.clean[layer], edits={start: Add(change)})
        gradient = self._behind([resid for _, resid, _ in moved], layer + 1)
        return self._pulled(start, self.clean[layer], change, gradient)

    def _behind_clean(self, first: int) -> Resid:
        """The gradient at what enters a block in the clean run, or leaves the last, with all nodes from there on held."""
        if not self.known:
            self.known.append(self._at_end(self.clean[-1]))
        last = self.model.n_layers
        for layer in reversed(range(first, last + 1 - len(self.known))):
            self.known.append(self._through(layer, self.clean[layer], self.known[-1]))
        return self.known[last - first]

    def _behind(self, resids: list[Resid], first: int) -> Resid:
        """The same where `resids` enter the blocks from there on, and leave the last."""
        gradient = self._at_end(resids[-1])
        for layer in reversed(range(first, self.model.n_layers)):
            gradient = self._through(layer, resids[layer - first], gradient)
        return gradient

    def _at_end(self, resid: Resid) -> Resid:
        end = Site(self.model.n_layers, Kind.RESID_PRE)
        return cut_gradients(self.model, self.metric, self.masks, self.rows, resid, end, frozenset({end}))[end]

    def _through(self, layer: int, resid: Resid, gradient: Resid) -> Resid:
        """Takes it back through a block. No site asks for more behind a residual stream that is held."""
        return self._pulled(Site(layer, Kind.RESID_PRE), resid, None, gradient)

    def _pulled(
        self, start: Site, resid: Resid, change: Float[Array, "batch seq ..."] | None, gradient: Resid
    ) -> Float[Array, "batch seq width"]:
        """Takes it from behind a block, which `resid` enters, to a site in it, to which `change` is added."""
        segment, masks, resid = self.pieces.between(start, Site(layer_of(start), Kind.RESID_POST), resid)
        return pull_batch(segment, masks, resid, change, gradient[:, None])[:, 0]
