"""Which sites feed which, read off the model's own forward pass.

The Jacobian from one site to another is empty when every path between them meets a site that is held, and that is known before anything
is computed: in the jaxpr of a forward pass in which every site's value has a name, a site feeds those that are computed from it by way of
no other name.
"""

import functools as ft
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .._dependence import dependence
from .._edits import Apply
from .._sites import Site
from .._tap import EditEach, Tap
from ..models import Transformer
from ..saes import AbstractDictionary


Dictionaries = Mapping[Site, AbstractDictionary]
Graph = dict[Site, frozenset[Site]]


def reaches(
    model: Transformer, source: Site, target: Site, held: Collection[Site] = (), saes: Dictionaries | None = None
) -> bool:
    """Whether a path leads from `source` to `target` that meets no site of `held` on its way."""
    return target in next_of(model, source, {*held, target}, saes)


def next_of(model: Transformer, source: Site, sites: Collection[Site], saes: Dictionaries | None = None) -> set[Site]:
    """Those of `sites` to which a path leads from `source` that meets no other of them on its way."""
    graph = site_graph(model, saes or {})
    frontier, seen = [source], {source}
    while frontier:
        new = graph.get(frontier.pop(), frozenset()) - seen
        seen |= new
        frontier += new.difference(sites)
    return seen.intersection(sites) - {source}


def site_graph(model: Transformer, saes: Dictionaries) -> Graph:
    """For each site the sites that read its value first. One with a dictionary is read through its latents and its error, which make up
    the value, and by its decoder where that reads its input.
    """
    return _site_graph(*structure_of((model, dict(saes))))


def structure_of(tree: Any) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """What a program depends on beside the numbers, to remember by: the structure of a pytree, and its leaves' shapes and dtypes."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


@ft.lru_cache(maxsize=64)
def _site_graph(tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Graph:
    model, saes = jax.tree.unflatten(tree, leaves)
    forward = lambda edits, model, saes, token: model(token, Tap(saes, edits, frozenset()))
    return graph_of(forward, model, saes, jax.ShapeDtypeStruct((1,), jnp.int32))


def graph_of(forward: Callable[..., Any], *arguments: Any) -> Graph:
    """For each site that `forward(edits, *arguments)` comes by, given these shapes, the sites that read its value first."""
    jaxpr = jax.make_jaxpr(ft.partial(forward, EditEach(_named)))(*arguments)
    reads = {Site.parse(name): set(map(Site.parse, names)) for name, names in dependence(jaxpr).items()}
    return {site: frozenset(s for s, read in reads.items() if site in read) for site in sorted(reads)}


def _named(site: Site) -> Apply:
    """Leaves the value at a site as it is, and gives it the site's name in the jaxpr."""
    return Apply(lambda x: checkpoint_name(x, str(site)))
