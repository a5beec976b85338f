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
from .._sites import Kind, Site
from .._tap import EditEach, site_read, Tap
from ..models import Transformer
from ..saes import AbstractDictionary, anonymous


Dictionaries = Mapping[Site, AbstractDictionary]
Graph = dict[Site, frozenset[Site]]


def reaches(
    model: Transformer, source: Site, target: Site, held: Collection[Site] = (), saes: Dictionaries | None = None
) -> bool:
    """Whether a path leads from `source` to `target` that meets no site of `held` on its way."""
    return target in next_of(site_graph(model, saes or {}), source, {*held, target})


def next_of(graph: Graph, source: Site, sites: Collection[Site]) -> set[Site]:
    """Those of `sites` to which a path leads from `source` that meets no other of them on its way."""
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
    return structure, tuple(map(_shape_of, leaves))


def _shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = leaf.dtype if isinstance(leaf, jax.Array) else jnp.result_type(leaf)  # asked of many arrays, many times
    return jax.ShapeDtypeStruct(jnp.shape(leaf), dtype)


@ft.lru_cache(maxsize=64)
def _site_graph(tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...]) -> Graph:
    """Puts together the graphs of the model's ends and of its blocks, of which those that are alike are looked at once."""
    model, saes = jax.tree.unflatten(tree, leaves)
    if any(site_read(site, sae).layer != site.layer for site, sae in saes.items()):
        return _graph_in_one_piece(model, saes)
    of_layer = lambda layer: {site: sae for site, sae in saes.items() if site.layer == layer}
    parts = [_graph_of_ends(model, of_layer(None))]
    for layer, block in enumerate(model.blocks):
        placed = {site.offset_layers(1 - layer): _placed(sae, 1 - layer) for site, sae in of_layer(layer).items()}
        parts.append(_graph_of_block(*structure_of((block, placed)), model.d_model, model.activation_dtype))
    graph: dict[Site, set[Site]] = {}  # counting layers from 1
    for layer, part in zip((0, *range(model.n_layers)), parts, strict=True):
        for site, readers in part.items():
            graph.setdefault(site.offset_layers(layer), set()).update(s.offset_layers(layer) for s in readers)
    first = graph.pop(BEFORE)
    through = lambda readers: readers - {BEFORE} | first if BEFORE in readers else readers
    back = lambda site: site.offset_layers(-1)
    return {back(site): frozenset(map(back, through(graph[site]))) for site in sorted(graph)}


BEFORE = Site(0, Kind.RESID_POST)  # what enters a block, if that is the second of a model


def _placed(sae: AbstractDictionary, layers: int) -> AbstractDictionary:
    """A dictionary `layers` further on, whatever it was trained for."""
    return anonymous(sae, sae.reads and sae.reads.offset_layers(layers))


def _graph_in_one_piece(model: Transformer, saes: Dictionaries) -> Graph:
    """The graph of a model in which dictionaries read in one layer what they add in another."""
    forward = lambda edits, model, saes, token: model(token, Tap(saes, edits, frozenset()))
    return graph_of(forward, model, saes, jax.ShapeDtypeStruct((1,), jnp.int32))


def _graph_of_ends(model: Transformer, saes: Dictionaries) -> Graph:
    """The graph of what is before the first block and behind the last, as if the first were the second."""

    def forward(edits, ends, saes, token):
        tap = Tap(saes, edits, frozenset())
        entering = tap.at(0)(BEFORE.kind, ends.embed(token, tap))
        ends.unembed(tap.at(model.n_layers)(Kind.RESID_POST, jnp.zeros_like(entering)), tap)

    return graph_of(forward, model.without_blocks, saes, jax.ShapeDtypeStruct((1,), jnp.int32))


@ft.lru_cache(maxsize=256)
def _graph_of_block(tree: Any, leaves: tuple[jax.ShapeDtypeStruct, ...], d_model: int, dtype: Any) -> Graph:
    """The graph of a block as the second, with what enters it."""
    block, saes = jax.tree.unflatten(tree, leaves)

    def forward(edits, block, saes, resid, mask):
        tap = Tap(saes, edits, frozenset())
        block(tap.at(0)(BEFORE.kind, resid), mask, tap.at(1))

    given = jax.ShapeDtypeStruct((1, d_model), dtype), jax.ShapeDtypeStruct((1, 1), bool)
    return graph_of(forward, block, saes, *given)


def graph_of(forward: Callable[..., Any], *arguments: Any) -> Graph:
    """For each site that `forward(edits, *arguments)` comes by, given these shapes, the sites that read its value first."""
    jaxpr = jax.make_jaxpr(ft.partial(forward, EditEach(_named)))(*arguments)
    reads = {Site.parse(name): set(map(Site.parse, names)) for name, names in dependence(jaxpr).items()}
    return {site: frozenset(s for s, read in reads.items() if site in read) for site in sorted(reads)}


def _named(site: Site) -> Apply:
    """Leaves the value at a site as it is, and gives it the site's name in the jaxpr."""
    return Apply(lambda x: checkpoint_name(x, str(site)))
