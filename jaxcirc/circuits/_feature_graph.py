"""The model as a graph of features, run with a value of its own along every edge.

In an ordinary run all nodes read the same values upstream. Here every target reads its own mixture: along some edges what the source is
in this run, along the others what it is ablated to. So each target is a variant of each prompt, and goes on from its first source.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Replace
from .._run import run
from .._sites import Kind, layer_of, Site
from .._tap import site_read
from ..graph import as_output, canonical
from ..models import Transformer
from ..runs import cheapest, of_size, Problem, record, Recorded, resume
from ..saes import AbstractDictionary, anonymous
from ._ablations import Nodes


AT_ONCE = 2**22  # numbers of latents, a few megabytes
EMBED = Site(None, Kind.EMBED)
Masks = Mapping[Site, Bool[np.ndarray, "target source_seq node"]]  # source_seq: 1 for all positions, or each


class Targets(NamedTuple):
    """Nodes at a site: each its number and its position, -1 for all positions."""

    units: Int[np.ndarray, " target"]
    pos: Int[np.ndarray, " target"]


class Source(NamedTuple):
    """What a site sends: its nodes in this run, and ablated; and the dictionary with what it read, which decode them."""

    sae: AbstractDictionary
    read: Float[Array, "*batch seq d_in"]
    now: Nodes
    ablated: Nodes

    def mixed(self, mask: Bool[Array, "source_seq node"]) -> Float[Array, "seq width"]:
        """The value at the site, of one prompt, where the nodes of `mask` are what they are in this run."""
        acts = jnp.where(mask[:, :-1], self.now.acts, self.ablated.acts)
        error = jnp.where(mask[:, -1:], self.now.error, self.ablated.error)
        return self.sae.decode(acts, self.read) + error


def clean_run(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    tokens: Int[Array, "batch seq"],
    keys: Bool[Array, "batch seq"],
) -> tuple[Recorded, dict[Site, Nodes]]:
    """Runs prompts, recorded where blocks begin and where dictionaries are and read, and takes the values apart into nodes."""
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)]
    clean = record(model, tokens, keys, {*cuts, *saes, *(site_read(site, sae) for site, sae in saes.items())})
    return clean, nodes_beside(saes, clean, clean)


def nodes_beside(saes: Mapping[Site, AbstractDictionary], of: Recorded, beside: Recorded) -> dict[Site, Nodes]:
    """Takes the values of a run apart into nodes as decoders that read what they read in another one leave them."""
    read = {site: site_read(site, sae) for site, sae in saes.items()}
    return {s: _split(anonymous(sae), of.flat(read[s]), of.flat(s), beside.flat(read[s])) for s, sae in saes.items()}


@jax.jit
def _split(
    sae: AbstractDictionary,
    read: Float[Array, "*batch seq d_in"],
    value: Float[Array, "*batch seq width"],
    beside: Float[Array, "*batch seq d_in"],
) -> Nodes:
    """Encodes what a dictionary reads; the error is what that leaves of the value where the decoder reads `beside`."""
    acts = sae.encode(read)
    return Nodes(acts, value - sae.decode(acts, beside))


def held_inputs(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    tokens: Int[Array, " seq"],
    keys: Bool[Array, " seq"],
) -> dict[Site, Replace]:
    """The edits of one prompt that hold what decoders read beside their latents at its clean value."""
    reads = {site: site_read(site, sae) for site, sae in saes.items() if sae.decoder_reads_input}
    clean = run(model, tokens, record=set(reads.values()), mask=keys)[1] if reads else {}
    return {site.input: Replace(clean[read]) for site, read in reads.items()}


def targets_at(
    model: Transformer,
    sae: AbstractDictionary,
    site: Site,
    clean: Recorded,
    sources: Mapping[Site, Source],
    masks: Masks,
    targets: Targets,
    start: Nodes,
) -> Nodes:
    """Computes what targets at `site` are, each for its own mixture of the sources that lead to it directly, and puts them into `start`.

    **Arguments:** - `masks`: which nodes of each source a target reads as they are in this run. - `targets`: latents all of them, or
    errors.
    """
    bare, (acts, error) = anonymous(sae), start
    for rows, chosen, *values in _variants(model, sae, site, clean, sources, masks, len(targets.units)):
        where = rows, targets.pos[chosen]
        if targets.units[0] == sae.d_sae:
            error = _put_errors(error, *where, _split(bare, *values).error)
        else:
            acts = _put_latents(bare, acts, *where, targets.units[chosen], values[0])
    return Nodes(acts, error)


@jax.jit
def _put_latents(
    sae: AbstractDictionary, acts: Float[Array, "batch seq d_sae"], rows, pos, units, read
) -> Float[Array, "batch seq d_sae"]:
    """Puts one latent of each variant, which reads `[variant seq d_in]`, in its place."""
    found = jax.vmap(lambda acts, unit: acts[:, unit])(sae.encode(read), units)
    return acts.at[rows[:, None], _places(pos, acts.shape[1]), units[:, None]].set(found, mode="drop")


@jax.jit
def _put_errors(error: Float[Array, "batch seq width"], rows, pos, found) -> Float[Array, "batch seq width"]:
    """Puts the error of each variant, `[variant seq width]`, in its place."""
    return error.at[rows[:, None], _places(pos, error.shape[1])].set(found, mode="drop")


def _places(pos: Int[Array, " variant"], seq: int) -> Int[Array, "variant seq"]:
    """The position of each number of a variant if it is its target's; all are where `pos` is -1. Those that are not lie beyond the end."""
    number = jnp.arange(seq, dtype=pos.dtype)
    return jnp.where((pos[:, None] < 0) | (pos[:, None] == number), number, seq)


def everything_at(
    model: Transformer,
    sae: AbstractDictionary,
    site: Site,
    clean: Recorded,
    sources: Mapping[Site, Source],
    masks: Masks,
) -> Nodes:
    """Computes all nodes at `site` for one mixture of the sources, `masks` `[1 source_seq node]`."""
    variants = _variants(model, sae, site, clean, sources, masks, 1)
    parts = [_split(anonymous(sae), *values) for _, _, *values in variants]
    return jax.tree.map(lambda *each: jnp.concatenate(each)[: len(clean.last)], *parts)


def _variants(
    model: Transformer,
    sae: AbstractDictionary,
    site: Site,
    clean: Recorded,
    sources: Mapping[Site, Source],
    masks: Masks,
    count: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, Array, Array, Array]]:
    """Runs each prompt in `count` variants, one for each target's mixture of the sources.

    Yields, some variants at a time, of which prompts and targets they are; what the dictionary at `site` reads in them, and the value
    there; and what it reads in the clean run.
    """
    read, last = site_read(site, sae), layer_of(as_output(site))
    # A transcoder may read what enters the first of the sources' blocks, or something earlier.
    begins = sources if read == site else (*sources, read)
    start = Site(min(layer_of(canonical(begin)) for begin in begins), Kind.RESID_PRE)
    ends = [canonical(end) if layer_of(canonical(end)) <= last else as_output(end) for end in (read, site)]
    batch, seq = clean.last.shape[:2]
    each = seq * (sae.d_sae + sum(source.sae.d_sae for source in sources.values()))
    total = batch * count
    for numbers in of_size(total, _group_size(total, max(1, AT_ONCE // each), batch, seq)):
        rows, targets = np.divmod(numbers, count)
        edits = _mixtures(model, clean, sources, {source: masks[source][targets] for source in sources}, rows)
        now = {canonical(source): edit for source, edit in edits.items()}
        resid = clean.values[start][rows]
        found = resume(model, clean.masks, start, rows, resid, edits=now, record=ends, until=last)[1]
        here, value = (found[end].reshape(len(rows), seq, -1) for end in ends)
        yield rows, targets, here, value, clean.flat(read)[rows]


def _group_size(total: int, most: int, batch: int, seq: int) -> int:
    """How many of `total` variants are run at once, at most so many: what takes the least time, or as many as before."""
    sizes = {most, *(1 << i for i in range(most.bit_length()))}
    # A group costs about as much beside its variants as a few of them, and the more the smaller the model.
    return cheapest(sizes, lambda size: -(-total // size) * (size + 16), "variants", batch, seq)


def metric_at(
    model: Transformer, problem: Problem, clean: Recorded, sources: Mapping[Site, Source], masks: Masks
) -> Float[Array, " batch"]:
    """Computes the metric for its own mixture of the sources that lead to it directly, `masks` `[1 source_seq node]`."""
    rows = np.arange(len(problem.clean))
    masks = {source: np.broadcast_to(mask, (len(rows), *mask.shape[1:])) for source, mask in masks.items()}
    edits = _mixtures(model, clean, sources, masks, rows, embedding=True)
    return record(model, problem.clean, problem.mask, metric=problem.metric, edits=edits).metric


def _mixtures(
    model: Transformer,
    clean: Recorded,
    sources: Mapping[Site, Source],
    masks: Mapping[Site, Bool[np.ndarray, "variant source_seq node"]],
    rows: np.ndarray,
    *,
    embedding: bool = False,
) -> dict[Site, Replace]:
    """Puts at the site of every source the mixture that each variant reads.

    The embedding's nodes are without the position, which is added to them where the first block begins, unless they are put at the
    `embedding`.
    """
    edits = {}
    for site, source in sources.items():
        value = _mixed(source._replace(sae=anonymous(source.sae)), jnp.asarray(masks[site]), rows)
        if site == EMBED and not embedding:
            value = value + (clean.values[Site(0, Kind.RESID_PRE)] - clean.values[EMBED])[rows]
        shape = (model.n_heads, model.d_head) if site.kind == Kind.Z else value.shape[2:]
        edits[site] = Replace(value.reshape(*value.shape[:2], *shape))
    return edits


@jax.jit
def _mixed(source: Source, masks, rows) -> Float[Array, "variant seq width"]:
    """Mixes a source's nodes by each variant's mask."""
    values = source[1:]

    def one(row, mask):
        read, now, ablated = jax.tree.map(lambda x: x[row], values)
        return Source(source.sae, read, now, ablated).mixed(mask)

    return jax.vmap(one)(rows, masks)
