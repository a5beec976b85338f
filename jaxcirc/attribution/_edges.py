"""Edge effects: how much each node moves the metric through each node downstream, directly."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._sites import Site
from ..models import Transformer
from ..saes import AbstractDictionary
from ._contract import direct_to_metric, iterate_edges
from ._effects import Metric, NodeEffects
from ._methods import IntegratedGradients
from ._prepare import prepare, Problem
from ._states import states


Pair = tuple[Site, Site]


@dataclasses.dataclass(frozen=True)
class EdgeEffects:
    """Effects of edges on the metric, corrupt less clean, in the metric's units: one number for each pair of node instances.

    **Attributes:**

    - `coo[(source, target)]`: `(target_index [n 3], source_index [n 3], value [n])`; an index is (batch, position, node), and node
      `d_sae` is the dictionary's error. Exactly zero values are not stored.
    - `to_metric[source]` `[batch seq node]`: what a node does to the metric along paths that meet no other node.
    - `sizes[site]`: how many nodes there are at a site, `d_sae + 1`; `batch` and `seq` the other sizes.
    """

    coo: dict[Pair, tuple[np.ndarray, np.ndarray, np.ndarray]]
    to_metric: dict[Site, Float[Array, "batch seq node"]]
    sizes: dict[Site, int]
    batch: int
    seq: int

    def dense(self, pair: tuple[Site | str, Site | str]) -> np.ndarray:
        """The edges of a pair of sites as an array `[batch target_pos target_node source_pos source_node]`."""
        source, target = (Site.parse(site) for site in pair)
        if (source, target) not in self.coo:
            known = ", ".join(f"({s}, {t})" for s, t in self.coo)
            raise ValueError(f"No edges go directly from `{source}` to `{target}`. The pairs are {known}.")
        targets, sources, values = self.coo[source, target]
        out = np.zeros((self.batch, self.seq, self.sizes[target], self.seq, self.sizes[source]), values.dtype)
        out[(*targets.T, *sources.T[1:])] = values
        return out


def edge_effects(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    metric: Metric,
    nodes: NodeEffects,
    *,
    threshold: float,
    upstream: str = "active",
    edges: str = "clean",
    path: IntegratedGradients = IntegratedGradients(),
    mask: Bool[Array, "batch seq"] | None = None,
) -> EdgeEffects:
    r"""Effects of the edges into every node whose effect exceeds `threshold`, error nodes on both ends included.

    For a node $d$ with value $a_d$ and a node $u$ upstream, whose values differ by $\delta_u$ between the prompts,

    $$E_{u \to d} = \nabla_{a_d} m \cdot \frac{\partial a_d}{\partial a_u} \cdot \delta_u,$$

    with the derivative along the paths that meet no other node's site. With `edges="clean"` that is at the clean point, and
    $\nabla_{a_d} m$ the gradient that `nodes` used; if that is the clean gradient too, the edges out of a node sum to its effect, the
    error nodes and `to_metric` among them. With `edges="integrated"` both factors are the mean over points at which the source's site
    is on its way to the corrupt value and all that follows is computed from there: then the edges out of a node sum to its integrated
    gradients, exactly, by the same rule of integration.

    **Arguments:**

    - `nodes`: `jc.node_effects(…)` of the same prompts, dictionaries and metric.
    - `threshold`: edges are computed into nodes of one example and position with `|effect| > threshold`.
    - `upstream`: `"active"`, from every node whose value differs between clean and corrupt; or `"selected"`, from those above the
      threshold only.
    - `edges`: `"clean"` or `"integrated"`; `path`: the rule of the latter, the nodes' own for sums to agree.
    - the rest as in `jc.node_effects`.

    **Returns:** `EdgeEffects`.

    **Raises:** `ValueError` as `jc.node_effects` does, and if `nodes` is of other prompts or dictionaries.

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2 and appendix A.1. Differences from the
    reference implementation: edges out of error nodes are there, and each edge costs one cotangent of the sublayers between its ends
    and not a backward pass of the whole model;
    and edges can be integrated like the nodes. Latents that are off in the clean run have no clean edges into them, as there; they have
    integrated ones.
    """
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    if upstream not in ("active", "selected"):
        raise ValueError(f"edge_effects: upstream must be 'active' or 'selected', got {upstream!r}.")
    if edges not in ("clean", "integrated"):
        raise ValueError(f"edge_effects: edges must be 'clean' or 'integrated', got {edges!r}.")
    _check_same(problem, nodes)
    at = states(model, problem.saes, problem.clean, problem.corrupt, problem.mask)
    effects = {site: np.asarray(nodes.nodes(site)) for site in problem.saes}
    above = lambda site: np.abs(effects[site]) > threshold
    anything = lambda site: np.ones(effects[site].shape, bool)
    chosen = above if upstream == "selected" else anything
    found: dict[Pair, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    rule = path if edges == "integrated" else None
    for part in iterate_edges(model, problem, at, nodes.gradient, targets=above, sources=chosen, path=rule):
        found.setdefault((part.wire.source, part.wire.target), []).append((part.targets, part.sources, part.values))
    return EdgeEffects(
        coo={pair: _joined(chunks, summed=rule is not None) for pair, chunks in found.items()},
        to_metric=direct_to_metric(model, problem, at, nodes.gradient, rule),
        sizes={site: sae.d_sae + 1 for site, sae in problem.saes.items()},
        batch=problem.clean.shape[0],
        seq=problem.clean.shape[1],
    )


def _joined(
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]], *, summed: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The chunks in one; `summed` if the same ends are in several."""
    targets, sources, values = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    if not summed:
        return targets, sources, values
    ends, where = np.unique(np.concatenate([targets, sources], axis=1), axis=0, return_inverse=True)
    total = np.zeros(len(ends), values.dtype)
    np.add.at(total, where.reshape(-1), values)
    return ends[:, :3], ends[:, 3:], total


def _check_same(problem: Problem, nodes: NodeEffects) -> None:
    batch, seq = problem.clean.shape
    want = {site: (batch, seq, sae.d_sae) for site, sae in problem.saes.items()}
    got = {site: acts.shape for site, acts in nodes.acts.items()}
    if want != got:
        differing = [str(site) for site in sorted({*want, *got}) if want.get(site) != got.get(site)]
        raise ValueError(
            f"edge_effects: `nodes` must be the node effects of the same prompts and dictionaries; they differ at {', '.join(differing)}. "
            "Compute them with jc.node_effects of the same arguments."
        )
