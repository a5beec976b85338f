"""Edge effects: how much each node moves the metric through each node downstream, directly."""

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_choice, check_kind, check_number
from .._metrics import Metric
from .._shown import Shown
from .._sites import BySite, Site
from .._traced import check_untraced
from ..jacobian._certificate import Certificate, certify_edges
from ..models import Transformer
from ..runs import lengthened, prepare, Problem
from ..saes import AbstractDictionary
from ._contract import Edges, iterate_edges
from ._direct import direct_to_metric
from ._effects import NodeEffects
from ._methods import IntegratedGradients
from ._node_values import ArraysBySite
from ._origin import origin
from ._packs import every_node, NodeMask, nodes_among


Pair = tuple[Site, Site]


Coo = tuple[Int[np.ndarray, "n 3"], Int[np.ndarray, "n 3"], Float[np.ndarray, " n"]]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class EdgeEffects(Shown):
    """Effects of edges on the metric, corrupt − clean, in the metric's units: one number for each pair of node instances.

    **Attributes:**

    - `coo[(source, target)]`: `(target_index [n 3], source_index [n 3], value [n])`; an index is (batch, position, node), and node
      `d_sae` is the dictionary's error. Exactly zero values are left out. It is made when it is asked for, and takes seven times the
      memory of the edges' values.
    - `to_metric[source]` `[batch seq node]`: what a node does to the metric along paths that meet no other node; made like `coo`.
    - `parts[(source, target)]`: the edges as tables of rows, the targets, and columns, the sources; those with the same ends in several are
      to be summed.
    - `sizes[site]`: how many nodes there are at a site, `d_sae + 1`; `batch` and `seq` the other sizes.
    - `certificate`: the measured error of the edges, and with what precision of matrix products they were computed; `None` if that was not
      asked for, or there are none.
    """

    to_metric: ArraysBySite
    parts: dict[Pair, list[Edges]]
    sizes: BySite[int]
    batch: int
    seq: int
    certificate: Certificate | None = None

    def _facts(self) -> dict[str, str]:
        return {
            "pairs of sites": str(len(self.parts)),
            "to_metric": f"at {len(self.to_metric)} sites",
            "prompts": f"{self.batch} of {self.seq} positions",
            "certificate": str(self.certificate or "not asked for"),
        }

    @property
    def coo(self) -> Mapping[Pair, Coo]:
        return _Lists(self.parts)

    def dense(self, pair: tuple[Site | str, Site | str]) -> np.ndarray:
        """The edges of a pair of sites as an array `[batch target_pos target_node source_pos source_node]`."""
        source, target = _parsed(pair)
        if (source, target) not in self.parts:
            known = ", ".join(f"({s}, {t})" for s, t in self.parts)
            raise ValueError(f"No edges go directly from `{source}` to `{target}`. The pairs are {known}.")
        targets, sources, values = self.coo[source, target]
        out = np.zeros((self.batch, self.seq, self.sizes[target], self.seq, self.sizes[source]), values.dtype)
        out[(*targets.T, *sources.T[1:])] = values
        return out


def _parsed(pair: tuple[Site | str, Site | str]) -> Pair:
    source, target = pair
    return Site.parse(source), Site.parse(target)


class _Lists(Mapping[Pair, Coo]):
    """The edges between each pair of sites in one list, made when it is asked for."""

    def __init__(self, parts: dict[Pair, list[Edges]]):
        self._parts = parts

    def __getitem__(self, pair: tuple[Site | str, Site | str]) -> Coo:
        pair = _parsed(pair)
        targets, sources, values = (
            np.concatenate(each) for each in zip(*(edges.coo() for edges in self._parts[pair]), strict=True)
        )
        rows = np.concatenate([edges.rows() for edges in self._parts[pair]])
        if len(np.unique(rows, axis=0)) == len(rows):  # no target is in two parts, so no edge is
            return targets, sources, values
        ends, where = np.unique(np.concatenate([targets, sources], axis=1), axis=0, return_inverse=True)
        total = np.zeros(len(ends), values.dtype)
        np.add.at(total, where.reshape(-1), values)
        return ends[:, :3], ends[:, 3:], total

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


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
    certify: bool = False,
) -> EdgeEffects:
    r"""Effects of the edges into every node whose effect exceeds `threshold`, error nodes on both ends included.

    For a node $d$ with value $a_d$ and a node $u$ upstream, whose values differ by $\delta_u$ between the prompts,

    $$E_{u \to d} = \nabla_{a_d} m \cdot \frac{\partial a_d}{\partial a_u} \cdot \delta_u,$$

    with the derivative along the paths that meet no other node's site. Where a decoder reads its input (normalised dictionaries, skip
    transcoders) that is held at its clean value, and the error is what the latents leave there.

    With `edges="clean"` the derivative is at the clean point, and $\nabla_{a_d} m$ the gradient that `nodes` used; if that is the clean
    gradient too, the edges out of a node sum to its effect, the error nodes and `to_metric` among them. With `edges="integrated"` both
    factors are the mean over points at which the source's site is on its way to the corrupt value and all that follows is computed from
    there: then the edges out of a node sum to its integrated gradients, exactly, by the same rule of integration.

    **Arguments:**

    - `nodes`: `jc.node_effects(…)` of the same model, dictionaries, prompts and metric.
    - `threshold`: edges are computed into nodes of one example and position with `|effect| > threshold`; below 0 into all, those without
      an effect too, so that sums are complete.
    - `upstream`: `"active"`, from every node whose value differs between clean and corrupt; or `"selected"`, from those above the
      threshold only.
    - `edges`: `"clean"` or `"integrated"`; `path`: the rule of the latter, the nodes' own for sums to agree.
    - `certify`: compare the first edges into each kind of site, from its own block and from one before, with float64, on the first prompt,
      which takes as long as some prompts do. On accelerators it tells what products of lower precision (`jax.default_matmul_precision`)
      do to them.
    - the rest as in `jc.node_effects`.

    **Returns:** `EdgeEffects`.

    **Raises:** `ValueError` as `jc.node_effects` does, if `nodes` is of another model, other dictionaries,
    other prompts or another metric, and if edges are wrong by the certificate.

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2 and appendix A.1. Differences from the
    reference implementation: edges out of error nodes are there, and each edge costs one cotangent of the sublayers between its ends
    and not a backward pass of the whole model;
    and edges can be integrated like the nodes. Latents that are off in the clean run have no clean edges into them, as there; they have
    integrated ones.
    """
    check_untraced("edge_effects", model)
    check_number("edge_effects: threshold", threshold)
    check_choice("edge_effects: upstream", upstream, ("active", "selected"))
    check_choice("edge_effects: edges", edges, ("clean", "integrated"))
    check_kind("edge_effects: nodes", nodes, NodeEffects, "effects, as jc.node_effects gives them")
    check_kind("edge_effects: path", path, IntegratedGradients, "a rule, jc.IntegratedGradients(steps, rule)")
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    _check_same(model, problem, nodes)
    length, seq = int(problem.length), problem.clean.shape[1]
    above = _above(problem, nodes, threshold)
    gradient = {site: jax.device_put(lengthened(each, seq, 0)) for site, each in nodes.gradient.items()}
    chosen = above if upstream == "selected" else every_node
    parts: dict[Pair, list[Edges]] = {}
    rule = path if edges == "integrated" else None
    errors: list[float] = []
    given = model, problem, nodes.at, gradient
    for part in iterate_edges(*given, targets=above, sources=chosen, path=rule, certify=certify):
        errors += [] if part.error is None else [part.error]
        parts.setdefault((part.wire.source, part.wire.target), []).append(part)
    direct = direct_to_metric(model, problem, nodes.at, gradient, rule)
    return EdgeEffects(
        to_metric=ArraysBySite((site, values.shortened(length).nodes) for site, values in direct.items()),
        parts=parts,
        sizes=BySite((site, sae.d_sae + 1) for site, sae in problem.saes.items()),
        batch=problem.clean.shape[0],
        seq=length,
        certificate=certify_edges(errors, model.activation_dtype),
    )


def _above(problem: Problem, nodes: NodeEffects, threshold: float) -> NodeMask:
    """Takes the nodes whose effect is above the threshold; those that are not listed have none."""
    if threshold < 0:
        return every_node
    chosen = {site: values.above(threshold) for site, values in nodes.listed.items()}
    return nodes_among(chosen, problem.clean.shape, problem.saes)


def _check_same(model: Transformer, problem: Problem, nodes: NodeEffects) -> None:
    batch, seq = len(problem.clean), int(problem.length)
    want = {site: (batch, seq, sae.d_sae) for site, sae in problem.saes.items()}
    got = {site: (*values.error.shape, values.d_sae) for site, values in nodes.listed.items()}
    if want != got:
        differing = [str(site) for site in sorted({*want, *got}) if want.get(site) != got.get(site)]
        raise ValueError(
            f"edge_effects: `nodes` must be the node effects of the same prompts and dictionaries; they differ at {', '.join(differing)}. "
            "Compute them with jc.node_effects of the same arguments."
        )
    other = None if nodes.of is None else nodes.of.differs(origin(model, problem))
    if not np.array_equal(nodes.at.prompts, problem.prompts()) or not np.array_equal(nodes.at.mask, problem.mask):
        other = "of other prompts"
    if other is not None:
        raise ValueError(
            f"edge_effects: `nodes` must be the node effects of the same model, dictionaries, prompts and metric, and they are {other}. "
            "Compute them with jc.node_effects of the same arguments."
        )
