"""A circuit run by its edges: each carries a value of its own, from one site with a dictionary to the next."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .._sites import Site
from ..graph import reaches_output, wiring
from ..models import Transformer
from ..runs import Problem, Recorded
from ._ablations import Nodes, Values
from ._feature_graph import everything_at, metric_at, Source, Targets, targets_at
from ._members import Into


class EdgeRun(NamedTuple):
    """One run in which every edge carries a value of its own."""

    model: Transformer
    problem: Problem
    clean: Recorded
    nodes: Mapping[Site, Nodes]  # of the clean run
    ablated: Values
    intact: frozenset[Site]
    without_errors: bool
    complement: bool

    def metric(self, into: Mapping[Site | None, Into], members: Mapping[Site, np.ndarray]) -> np.ndarray:
        """The metric of each prompt, when the edges `into` every site carry what is there, or for the complement all others."""
        saes, feeds = self.problem.saes, {}
        for wire in wiring(self.model, saes):
            feeds.setdefault(wire.target, []).append(wire.source)
        now: dict[Site, Nodes] = {}
        for site in sorted(saes):
            if site in self.intact or (site not in feeds and self.complement):
                now[site] = self.nodes[site]
            elif site not in feeds:
                now[site] = self._kept(site, members[site])
            else:
                now[site] = self._at(site, feeds[site], now, into.get(site), members[site])
        ends = tuple(reaches_output(self.model, saes))
        masks = self._masks(into.get(None), ends, 1)
        metric = metric_at(self.model, self.problem, self.clean, self._sources(ends, now), masks)
        return np.asarray(metric, np.float64)

    def _at(self, site: Site, feeds, now, into: Into | None, member: np.ndarray) -> Nodes:
        """The nodes at a site: each target from its own mixture, the others ablated, or for the complement from all there is."""
        sae, sources = self.problem.saes[site], self._sources(feeds, now)
        given = (self.model, sae, site, self.clean, sources)
        start = self.ablated[site]
        if self.complement:
            start = everything_at(*given, self._masks(None, feeds, 1))
            targets = _none() if into is None else into
        else:
            targets = _with_members(into, member)
        masks, found = self._masks(targets, feeds, len(targets.units)), start
        for of_error in (False, True):
            chosen = np.flatnonzero((targets.units == sae.d_sae) == of_error)
            if len(chosen):
                some = Targets(targets.units[chosen], targets.pos[chosen])
                found = targets_at(*given, {source: mask[chosen] for source, mask in masks.items()}, some, found)
        if self.without_errors:
            return Nodes(found.acts, self.ablated[site].error)
        return found

    def _kept(self, site: Site, member: np.ndarray) -> Nodes:
        """A site that no node leads to: clean where it is in the circuit."""
        clean, ablated = self.nodes[site], self.ablated[site]
        error = member[:, -1:] & (not self.without_errors)
        return Nodes(jnp.where(member[:, :-1], clean.acts, ablated.acts), jnp.where(error, clean.error, ablated.error))

    def _sources(self, sites: Iterable[Site], now: Mapping[Site, Nodes]) -> dict[Site, Source]:
        saes, read = self.problem.saes, lambda site: self.clean.flat(saes[site].reads or site)
        return {site: Source(saes[site], read(site), now[site], self.ablated[site]) for site in sites}

    def _masks(self, into: Into | None, sources: Iterable[Site], n: int) -> dict[Site, np.ndarray]:
        """For each of `n` targets which nodes of each source it reads as they are in this run."""
        masks = {}
        for source in sources:
            nodes = self.problem.saes[source].d_sae + 1
            mask = np.zeros((n, 1, nodes), bool) if into is None or source not in into.reached else into.reached[source]
            mask = ~mask if self.complement else mask.copy()
            if self.without_errors:
                mask[..., -1] = False
            masks[source] = np.ones_like(mask) if source in self.intact else mask
        return masks


def _none() -> Into:
    return Into(np.zeros(0, int), np.zeros(0, int), {})


def _with_members(into: Into | None, member: np.ndarray) -> Into:
    """The targets of the circuit's edges, and its nodes that no edge of it leads to."""
    into = _none() if into is None else into
    summed = bool((member == member[:1]).all())
    have = set(zip(into.units.tolist(), into.pos.tolist(), strict=True))
    if summed and not any(pos >= 0 for _, pos in have):
        nodes = [(int(unit), -1) for unit in np.flatnonzero(member[0])]
    else:
        nodes = [(int(unit), int(pos)) for pos, unit in np.argwhere(member)]
    more = [node for node in nodes if node not in have]
    units, positions = (
        np.concatenate([have, np.array([node[i] for node in more], int)]) for i, have in enumerate(into[:2])
    )
    widen = lambda mask: np.concatenate([mask, np.zeros((len(more), *mask.shape[1:]), bool)])
    return Into(units, positions, {source: widen(mask) for source, mask in into.reached.items()})
