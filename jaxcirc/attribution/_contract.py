"""The contraction behind edge effects: covectors of the targets, pulled back through the blocks between, with the sources' vectors."""

import functools as ft
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._edits import Add, Detach, Replace
from .._run import run, site_shapes
from .._sites import Kind, Site
from .._tap import site_read, Tap
from ..models import Transformer
from ..saes import AbstractDictionary
from ._nodes import latent_gradient
from ._packs import pack_sources, pack_targets, Sources, TargetChunk
from ._prepare import Problem
from ._states import node_differences, States
from ._wiring import canonical, layer_of, reaches_output, Wire, wiring


NodeMask = Callable[[Site], Bool[np.ndarray, "batch seq node"]]


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
