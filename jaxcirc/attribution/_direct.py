"""Effects of nodes on the metric past all later ones: one way back through the blocks, on which every node is held."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import Add, Detach
from .._run import NOTHING, site_shapes
from .._sites import Kind, layer_of, Site
from .._tap import Tap
from ..graph import canonical, reaches_output
from ..models import Transformer
from ..parts import Block
from ..runs import cut_gradients, onwards, Problem
from ._contract import Gradients
from ._effects import node_products
from ._methods import IntegratedGradients
from ._node_values import NodeValues
from ._states import States


Resid = Float[Array, "batch seq d_model"]
Held = dict[Site, Detach]  # sites of a block, counting layers from it


def direct_to_metric(
    model: Transformer, problem: Problem, at: States, gradient: Gradients, path: IntegratedGradients | None = None
) -> dict[Site, NodeValues]:
    """The effect of each node on the metric along the paths that meet no later node.

    Where there is no later node that is the node's whole effect, by the gradient of the nodes; else the clean gradient with later
    nodes held, or the mean of those on the `path`.
    """
    points = [(0.0, 1.0)] if path is None else list(zip(*path.points(), strict=True))
    way_back = ft.cache(lambda: _WayBack(model, problem, at))  # not made where no node has later ones
    out = {}
    for site, later in reaches_output(model, problem.saes).items():
        if later:
            to_site = way_back().to_site
            parts = [float(weight) * to_site(site, float(fraction)) for fraction, weight in points]
            direct = ft.reduce(jnp.add, parts)
        else:
            direct = gradient[site]
        out[site] = node_products(site, problem.saes[site], at, direct)
    return out


class _WayBack:
    """The gradient of the metric at each node with all later ones held. Blocks that are alike share a program, and in the clean run nodes
    share the way back.
    """

    def __init__(self, model: Transformer, problem: Problem, at: States):
        self.model, self.metric, self.at = model, problem.metric, at
        self.masks, self.rows = model.batch_masks(problem.mask), np.arange(len(problem.mask))
        self.shapes = site_shapes(model, problem.clean.shape[1])
        self.held = [
            {node.offset_layers(-layer): Detach() for node in problem.saes if node.layer == layer}
            for layer in range(model.n_layers)
        ]
        self.clean = [at.resid[Site(layer, Kind.RESID_PRE)] for layer in range(model.n_layers + 1)]
        self.still = jnp.zeros_like(self.clean[0])
        # Of the clean run the gradient behind the last block, and behind each one before that.
        self.known: list[Resid] = []

    def to_site(self, site: Site, fraction: float) -> Float[Array, "batch seq width"]:
        """Computes it at a node's site, with so much added there of what differs in the corrupt run."""
        place = canonical(site)
        layer, change = layer_of(place), fraction * self.at.differences[site]
        change = change.reshape(*change.shape[:2], *self.shapes[site].shape[1:])
        if fraction == 0:
            gradient = self._behind_clean(layer + 1)
        else:
            start = Site(layer, Kind.RESID_PRE)
            moved = onwards(self.model, self.masks, start, self.rows, self.clean[layer], edits={place: Add(change)})
            gradient = self._behind([resid for _, resid, _ in moved], layer + 1)
        relative = place.offset_layers(-layer)
        held = {node: edit for node, edit in self.held[layer].items() if node > relative}
        block, mask = self.model.blocks[layer], self.masks[layer]
        pulled = _pull(block, mask, self.clean[layer], change, gradient, held, site=relative)
        return pulled.reshape(*pulled.shape[:2], -1)

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
        """Pulls it back through a block whose nodes are all held. No site asks for more behind a residual stream that is held."""
        block, mask, enters = self.model.blocks[layer], self.masks[layer], Site(0, Kind.RESID_PRE)
        return _pull(block, mask, resid, self.still, gradient, self.held[layer], site=enters)


@ft.partial(jax.jit, static_argnames="site")
def _pull(
    block: Block,
    masks: Array,
    resid: Resid,
    change: Float[Array, "batch seq ..."],
    gradient: Resid,
    held: Held,
    *,
    site: Site,
) -> Float[Array, "batch seq ..."]:
    """Pulls gradients behind a block back to a site in it, to which `change` is added, with others held."""

    def one(mask, resid, change, gradient):
        run = lambda x: block(resid, mask, Tap(NOTHING, {site: Add(x), **held}, (), layer=0))
        return jax.vjp(run, change)[1](gradient)[0]

    return jax.vmap(one)(masks, resid, change, gradient)
