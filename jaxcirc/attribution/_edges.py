"""Edge effects: how much each node moves the metric through each node downstream, directly."""

import dataclasses
import functools as ft
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Add, Detach, Replace
from .._run import run, site_shapes
from .._sites import Kind, Site
from .._tap import site_read, Tap
from ..models import Transformer
from ..saes import AbstractDictionary
from ._methods import Metric
from ._nodes import latent_gradient, NodeEffects
from ._packs import pack_sources, pack_targets, Sources, TargetChunk
from ._prepare import prepare, Problem
from ._states import node_differences, States, states
from ._wiring import canonical, layer_of, reaches_output, Wire, wiring


Pair = tuple[Site, Site]
NodeMask = Callable[[Site], Bool[np.ndarray, "batch seq node"]]


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
    mask: Bool[Array, "batch seq"] | None = None,
) -> EdgeEffects:
    r"""Effects of the edges into every node whose effect exceeds `threshold`, error nodes on both ends included.

    For a node $d$ with value $a_d$ and a node $u$ upstream, whose values differ by $\delta_u$ between the prompts,

    $$E_{u \to d} = \nabla_{a_d} m \cdot \frac{\partial a_d}{\partial a_u} \cdot \delta_u,$$

    with the derivative along the paths that meet no other node's site, at the clean point, and $\nabla_{a_d} m$ the gradient that
    `nodes` used. With the clean gradient, the edges out of a node sum to its effect, the error nodes and `to_metric` among them.

    **Arguments:**

    - `nodes`: `jc.node_effects(…)` of the same prompts, dictionaries and metric.
    - `threshold`: edges are computed into nodes of one example and position with `|effect| > threshold`.
    - `upstream`: `"active"`, from every node whose value differs between clean and corrupt; or `"selected"`, from those above the
      threshold only.
    - the rest as in `jc.node_effects`.

    **Returns:** `EdgeEffects`.

    **Raises:** `ValueError` as `jc.node_effects` does, and if `nodes` is of other prompts or dictionaries.

    **Reference:** Marks et al. 2024, "Sparse Feature Circuits", arXiv 2403.19647, §3.2 and appendix A.1. Differences from the
    reference implementation: edges out of error nodes are there, and each edge costs one cotangent of the sublayers between its ends
    and not a backward pass of the whole model. Latents that are off in the clean run have no edges into them, as there.
    """
    problem = prepare(model, saes, clean, corrupt, metric, mask)
    if upstream not in ("active", "selected"):
        raise ValueError(f"edge_effects: upstream must be 'active' or 'selected', got {upstream!r}.")
    _check_same(problem, nodes)
    at = states(model, problem.saes, problem.clean, problem.corrupt, problem.mask)
    effects = {site: np.asarray(nodes.nodes(site)) for site in problem.saes}
    above = lambda site: np.abs(effects[site]) > threshold
    anything = lambda site: np.ones(effects[site].shape, bool)
    chosen = above if upstream == "selected" else anything
    found: dict[Pair, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for wire, *edges in iterate_edges(model, problem, at, nodes.gradient, targets=above, sources=chosen):
        found.setdefault((wire.source, wire.target), []).append((edges[0], edges[1], edges[2]))
    return EdgeEffects(
        coo={
            pair: tuple(np.concatenate(parts) for parts in zip(*chunks, strict=True)) for pair, chunks in found.items()
        },
        to_metric=direct_to_metric(model, problem, at, nodes.gradient),
        sizes={site: sae.d_sae + 1 for site, sae in problem.saes.items()},
        batch=problem.clean.shape[0],
        seq=problem.clean.shape[1],
    )


def _joined(chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    targets, sources, values = zip(*chunks, strict=True)
    return np.concatenate(targets), np.concatenate(sources), np.concatenate(values)


def iterate_edges(
    model: Transformer,
    problem: Problem,
    at: States,
    gradient: Mapping[Site, Float[Array, "batch seq width"]],
    *,
    targets: NodeMask,
    sources: NodeMask,
) -> Iterator[tuple[Wire, np.ndarray, np.ndarray, np.ndarray]]:
    """Yields `(wire, target_index [n 3], source_index [n 3], value [n])`, for every wire at least once, in chunks of bounded size.

    All wires of one kind, in whatever layer, run the same compiled program: chunks have one size, and blocks are arguments.
    """
    packs = pack_sources(problem.saes, at, {site: sources(site) for site in problem.saes})
    wanted = {site: targets(site) & np.asarray(at.mask)[..., None] for site in problem.saes}
    chunk = _chunk_size(wanted, packs)
    masks = jax.vmap(lambda keys: model.masks(keys.shape[0], keys))(at.mask)
    wires = wiring(model, problem.saes)
    for target in dict.fromkeys(wire.target for wire in wires):
        sae = problem.saes[target]
        for pack in pack_targets(sae, target, at, gradient[target], wanted[target], chunk):
            for wire in wires:
                if wire.target == target:
                    yield wire, *_contract(model, masks, sae, at, wire, pack, packs[wire.source])


def _chunk_size(wanted: Mapping[Site, np.ndarray], packs: Mapping[Site, Sources], budget: int = 2**25) -> int:
    """How many targets of each example go at once: all, up to 128, or what keeps a chunk's values under `budget`."""
    most = max(int(mask.sum(axis=(1, 2)).max()) for mask in wanted.values())
    values_each = max(pack.units.size for pack in packs.values())
    return max(1, min(2 ** max(most - 1, 0).bit_length(), 128, budget // values_each))


def _contract(
    model: Transformer,
    masks: tuple,
    sae: AbstractDictionary,
    at: States,
    wire: Wire,
    pack: TargetChunk,
    sources: Sources,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edges of one wire into one chunk of targets, in coordinates."""
    start, end, reads = canonical(wire.source), _as_output(wire.target), _as_output(site_read(wire.target, sae))
    first, last = layer_of(start), layer_of(end)
    span = slice(first, last + 1)
    values = _pull(
        model.blocks[span],
        masks[span],
        at.resid[Site(first, Kind.RESID_PRE)],
        None if start.kind == Kind.RESID_PRE else _shaped(model, wire.source, at),
        {site.shift(-first): _shaped(model, site, at) for site in wire.frozen},
        pack.positions,
        pack.at_read,
        pack.at_site,
        sources.vectors,
        source=start.shift(-first),
        target=end.shift(-first),
        reads=reads.shift(-first),
    )
    values = np.asarray(values)
    example, row, position, slot = np.nonzero(values)
    targets = np.stack([example, pack.positions[example, row], pack.units[example, row]], axis=-1)
    origins = np.stack([example, position, sources.units[example, position, slot]], axis=-1)
    return targets.astype(np.int32), origins.astype(np.int32), values[example, row, position, slot]


def _shaped(model: Transformer, site: Site, at: States) -> Float[Array, "batch seq ..."]:
    """The clean value at `site` in the site's own shape: `z` has heads."""
    value = at.values[site]
    return value.reshape(*value.shape[:2], model.n_heads, -1) if site.kind == Kind.Z else value


def _as_output(site: Site) -> Site:
    """`resid_pre` of a block as `resid_post` of the one before: the name by which a span of blocks ends in it."""
    return Site(layer_of(site) - 1, Kind.RESID_POST) if site.kind == Kind.RESID_PRE else site


@ft.partial(jax.jit, static_argnames=("source", "target", "reads"))
def _pull(
    blocks,
    masks,
    resid,
    value,
    frozen,
    positions,
    at_read,
    at_site,
    vectors,
    *,
    source: Site,
    target: Site,
    reads: Site,
) -> Float[Array, "batch row seq slot"]:
    """Pulls covectors at `target` back to `source` through `blocks`, and contracts them with the sources' vectors."""

    def one(masks, resid, value, frozen, positions, at_read, at_site, vectors):
        def downstream(x):
            edits = {site: Replace(held) for site, held in frozen.items()}
            if value is not None:
                edits[source] = Replace(x)
            tap = Tap({}, edits, {target, reads})
            stream = x if value is None else resid
            for layer, (block, mask) in enumerate(zip(blocks, masks, strict=True)):
                stream = block(stream, mask, tap.at(layer))
            flat = lambda site: tap.cache[site].reshape(resid.shape[0], -1)
            return flat(reads), flat(target)

        x = resid if value is None else value
        _, pull = jax.vjp(downstream, x)

        def row(position, at_read, at_site):
            spread = lambda covector: (
                jnp.zeros((resid.shape[0], covector.shape[0]), covector.dtype).at[position].set(covector)
            )
            return pull((spread(at_read), spread(at_site)))[0].reshape(resid.shape[0], -1)

        # [row seq width] · [seq slot width] -> [row seq slot]
        return jnp.einsum("rsd,spd->rsp", jax.vmap(row)(positions, at_read, at_site), vectors)

    return jax.vmap(one)(masks, resid, value, frozen, positions, at_read, at_site, vectors)


def direct_to_metric(
    model: Transformer, problem: Problem, at: States, gradient: Mapping[Site, Float[Array, "batch seq width"]]
) -> dict[Site, Float[Array, "batch seq node"]]:
    """The effect of each node on the metric along the paths that meet no later node.

    Where there is no later node that is the node's whole effect, by the gradient of the nodes; else the clean gradient with later
    nodes held.
    """
    out = {}
    for site, later in reaches_output(model, problem.saes).items():
        sae = problem.saes[site]
        direct = (
            gradient[site]
            if not later
            else _held(model, problem.clean, problem.metric, problem.mask, site=site, later=later)
        )
        d_acts, d_error = node_differences(sae, site, at)
        acts = d_acts * latent_gradient(sae, site, at, direct)
        out[site] = jnp.concatenate([acts, jnp.sum(d_error * direct, axis=-1, keepdims=True)], axis=-1)
    return out


@ft.partial(jax.jit, static_argnames=("site", "later"))
def _held(model, tokens, metric, mask, *, site: Site, later: tuple[Site, ...]):
    shape = site_shapes(model, tokens.shape[1])[site]

    def one(tokens, keys, metric):
        value = lambda x: metric(run(model, tokens, edits={site: Add(x), **{s: Detach() for s in later}}, mask=keys)[0])
        return jax.grad(value)(jnp.zeros(shape.shape, shape.dtype)).reshape(tokens.shape[0], -1)

    return jax.vmap(one)(tokens, mask, metric)


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
