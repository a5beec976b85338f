"""Edge effects as bilinear forms of Jacobians: covectors of the targets against the sources' vectors, wire by wire."""

import functools as ft
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._edits import Add, Detach
from .._run import run, site_shapes
from .._sites import Kind, layer_of, Site
from .._tap import site_read
from ..jacobian import between_blocks, contract_batch, Span
from ..models import Transformer
from ..saes import AbstractDictionary
from ._effects import latent_gradient
from ._packs import pack_sources, pack_targets, Sources, TargetChunk
from ._prepare import Problem
from ._states import node_differences, States
from ._wiring import as_output, canonical, reaches_output, Wire, wiring


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
    """How many targets of each example go at once: all, up to 256, or what keeps a chunk's values under `budget`."""
    most = max(int(mask.sum(axis=(1, 2)).max()) for mask in wanted.values())
    values_each = max(pack.units.size for pack in packs.values())
    return max(1, min(2 ** max(most - 1, 0).bit_length(), 256, budget // values_each))


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
    batch, seq, slots, width = sources.vectors.shape
    vectors = sources.vectors.reshape(batch, seq * slots, width)
    positions = jnp.broadcast_to(jnp.repeat(jnp.arange(seq, dtype=jnp.int32), slots), (batch, seq * slots))
    read = site_read(wire.target, sae)
    if read == wire.target:
        covectors = {wire.target: pack.at_read + pack.at_site}
    else:
        covectors = {read: pack.at_read, wire.target: pack.at_site}
    values = sum(
        contract_batch(*_span(model, masks, at, wire, end), left, jnp.asarray(pack.positions), vectors, positions)
        for end, left in covectors.items()
        if canonical(wire.source) < canonical(end)
    )
    values = np.asarray(values).reshape(batch, -1, seq, slots)
    example, row, position, slot = np.nonzero(values)
    targets = np.stack([example, pack.positions[example, row], pack.units[example, row]], axis=-1)
    origins = np.stack([example, position, sources.units[example, position, slot]], axis=-1)
    return targets.astype(np.int32), origins.astype(np.int32), values[example, row, position, slot]


def _span(model: Transformer, masks: tuple, at: States, wire: Wire, end: Site) -> tuple[Span, tuple, Array]:
    """The blocks between the ends of a wire; and for every example their masks, and what enters the first."""
    start, end = canonical(wire.source), as_output(end)
    first, last = layer_of(start), layer_of(end)
    blocks = slice(first, last + 1)
    resid = at.resid[Site(first, Kind.RESID_PRE)]
    example = tuple(mask[0] for mask in masks[blocks])
    relative = lambda site: site.shift(-first)
    span = between_blocks(
        model.blocks[blocks], example, resid[0], relative(start), relative(end), map(relative, wire.frozen)
    )
    return span, masks[blocks], resid


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
