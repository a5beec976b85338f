"""What claims are worth: each component run on what its children's edges carry, the same run once, many of them at once."""

import dataclasses
import functools as ft
from collections.abc import Hashable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Apply
from .._metrics import Metric
from .._precision import widened
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import bare_tap, Tap
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Block
from ..runs import (
    attention_writes,
    feed_own,
    kinds_written,
    metric_of_variants,
    mlp_writes,
    of_size,
    rounded_up,
)
from ._between import Put, Stream, stream_with
from ._drawn import Drawn
from ._plain import last_stream, Plain


Numbers = Int[
    np.ndarray, " variant"
]  # of values: below the number of data the plain run of one, above it what was computed
Inputs = Int[np.ndarray, "row column"]  # what a value depends on, a row each
Table = Float[Array, "_ seq d_model"]  # of what was computed, as many as there are
OfData = Float[Array, "datum seq d_model"]  # of the plain runs


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """What every claim is run in.

    **Attributes:**

    - `model`: as the graph has it.
    - `columns` `[batch seq]` of each set of positions that claims name, as each reference example has them.
    - `placed` `[batch]`: the first example that has all of them as this one has.
    """

    model: Transformer
    graph: ComponentGraph
    plain: Plain
    metric: Metric
    columns: dict[tuple, Bool[np.ndarray, "batch seq"]]
    budget: int

    @ft.cached_property
    def placed(self) -> Int[np.ndarray, " batch"]:
        together = np.concatenate(list(self.columns.values()), axis=1)
        _, first, which = np.unique(together, axis=0, return_index=True, return_inverse=True)
        return first[which.reshape(-1)]

    @property
    def seq(self) -> int:
        return self.plain.streams[last_stream(self.model)].shape[1]

    def bytes_of(self, streams: int) -> int:
        """Counts what so many residual streams take."""
        return streams * self.seq * self.model.d_model * self.model.activation_dtype.itemsize


@dataclasses.dataclass(eq=False)
class Evaluated:
    """A tree of claims, evaluated.

    **Attributes:**

    - `metric` of each variant.
    - `numbers[path]`: which value each claim has in each: below the number of data that of a plain run.
    - `runs`: how many components were run.
    """

    metric: Float[np.ndarray, "*variant"]
    numbers: dict[str, Int[np.ndarray, "*variant"]]
    runs: int


def evaluate(scene: Scene, root: Drawn, reference: Int[np.ndarray, " variant"]) -> Evaluated:
    """Evaluates variants of a tree with the metric of their reference example."""
    count, runs = len(scene.plain.masks[0]), 0
    forms: dict[Hashable, list[Drawn]] = {}
    for node in reversed(list(root.walk())):  # children before their parents
        forms.setdefault(node.form, []).append(node)
    numbers: dict[str, Numbers] = {}
    tables: dict[Hashable, Table] = {}
    for form, nodes in forms.items():
        if not nodes[0].children and nodes[0] is not root:
            numbers |= {node.path: node.own for node in nodes}
            continue
        of_root = nodes[0] is root
        inputs = [_inputs(scene, node, numbers, reference, of_root) for node in nodes]
        found, which = np.unique(np.concatenate(inputs), axis=0, return_inverse=True)
        which = which.reshape(len(nodes), -1)
        children = slice(1, 1 + len(nodes[0].children))
        plain = (found[:, children] == found[:, :1]).all(axis=1)
        if of_root:
            values = _measured(scene, root, found, tables)
            numbers[root.path] = np.where(plain, found[:, 0], count)[which[0]]
            return Evaluated(values[which[0]], numbers, runs)
        number = np.where(plain, found[:, 0], count + np.cumsum(~plain) - 1)
        numbers |= {node.path: number[mine] for node, mine in zip(nodes, which, strict=True)}
        if not plain.all():
            tables[form] = _written(scene, nodes[0], found[~plain], tables)
            runs += int((~plain).sum())
    raise AssertionError("the root is the last")


def _inputs(
    scene: Scene, node: Drawn, numbers: dict[str, Numbers], reference: Int[np.ndarray, " variant"], of_root: bool
) -> Inputs:
    """What a value depends on: the others' datum, the children's values, and of which examples positions and metric are."""
    children = [numbers[child.path] for child in node.children]
    columns = [node.others, *children]
    if of_root:
        columns.append(reference)
    elif any(child.claim.where is not None for child in node.children):
        columns.append(scene.placed[reference])
    return np.stack(columns, axis=1)


def _written(scene: Scene, node: Drawn, inputs: Inputs, tables: dict[Hashable, Table]) -> Table:
    """What the component writes for each row of inputs."""
    model, graph, plain, name = scene.model, scene.graph, scene.plain, node.claim.name
    slot = graph.sender_slots[graph.sender(name)]
    block, masks, found = model.blocks[slot.layer], plain.masks[slot.layer], []
    cut = Site(slot.layer, block.mlp_reads if slot.part == "mlp" else Kind.RESID_PRE)
    feeds = {part: tuple(child.claim.feeds(part) for child in node.children) for part in node.claim.reads}
    for rows in _groups(scene, node, len(inputs)):
        some = inputs[rows]
        streams = {fed: _stream(scene, node, fed, cut, some, tables) for fed in set(feeds.values())}
        reads = [streams[fed] for fed in feeds.values()]
        if slot.part == "mlp":
            found.append(_run_mlp(graph, block, *reads))
        else:
            head = np.asarray(slot.head, np.int32)
            found.append(_run_head(graph, block, masks, some[:, 0], plain.streams[cut], reads, head))
    return found[0] if len(found) == 1 else jnp.concatenate(found)


def _measured(scene: Scene, root: Drawn, inputs: Inputs, tables: dict[Hashable, Table]) -> Float[np.ndarray, " row"]:
    """The metric for each row of inputs."""
    found, cut = [], last_stream(scene.model)
    for rows in _groups(scene, root, len(inputs)):
        last = _stream(scene, root, (True,) * len(root.children), cut, inputs[rows], tables)
        of = inputs[rows, -1]
        found.append(np.asarray(metric_of_variants(scene.model.without_blocks, scene.metric, of, last)))
    return np.concatenate(found)[: len(inputs)]


def _stream(
    scene: Scene, node: Drawn, fed: tuple[bool, ...], cut: Site, inputs: Inputs, tables: dict[Hashable, Table]
) -> Stream:
    """What an input of a component reads, which some of its children feed."""
    graph, plain, others, puts = scene.graph, scene.plain, inputs[:, 0], []
    for i in np.flatnonzero(fed):
        child = node.children[i]
        name, positions = child.claim.name, child.claim.where
        value = _value(plain.writes[name], tables.get(child.form), inputs[:, 1 + i])
        everywhere = np.ones((len(inputs), scene.seq), bool)
        columns = everywhere if positions is None else scene.columns[positions][inputs[:, -1]]
        puts.append(Put(graph.sender_slots[graph.sender(name)], value, columns))
    if puts and node.claim.paths == "any":
        return stream_with(scene.model, graph, plain, others, puts, cut)
    own = [plain.writes[put.slot.name] for put in puts]
    return _by_edges(plain.streams[cut], others, own, [(put.value, put.columns) for put in puts])


def _groups(scene: Scene, node: Drawn, count: int) -> list[Int[np.ndarray, " group"]]:
    """So many rows in groups of few sizes, which fit into the budget: a head reads as many streams as there are heads, thrice, and where a
    whole run is computed anew each head's output is there apart.
    """
    wide = node.claim.is_head or node.claim.paths == "any"
    most = max(1, scene.budget // scene.bytes_of(12 + (6 * scene.graph.n_heads if wide else 0)))
    return of_size(count, min(rounded_up(count), 1 << (most.bit_length() - 1)))


@jax.jit
def _value(plain: OfData, computed: Table | None, numbers) -> Stream:
    """Values by their numbers."""
    if computed is None:
        return plain[numbers]
    was_run = (numbers >= len(plain))[:, None, None]
    of_computed = computed[jnp.maximum(numbers - len(plain), 0)]
    return jnp.where(was_run, of_computed, plain[jnp.minimum(numbers, len(plain) - 1)])


@jax.jit
def _by_edges(streams: OfData, others, own: list[OfData], there) -> Stream:
    """The residual stream of plain runs, in which some edges carry another value."""
    changes = zip(own, there, strict=True)
    return sum((jnp.where(at[..., None], value - of[others], 0) for of, (value, at) in changes), streams[others])


@ft.partial(jax.jit, static_argnames="graph")
def _run_head(graph: ComponentGraph, block: Block, masks, rows, streams: OfData, reads: list[Stream], head) -> Stream:
    """What a head writes whose query, key and value read streams of their own; all other heads read that of a plain run."""
    block, here = _alone(block, head)
    attn, kinds = widened(block.attn), (Kind.Q, Kind.K, Kind.V)
    weights = [(attn.W_Q[here], attn.b_Q[here]), (attn.W_K[here], attn.b_K[here]), (attn.W_V[here], attn.b_V[here])]

    def one(row, *reads):
        normed = (x if block.ln1 is None else block.ln1(x, bare_tap(0)) for x in reads)
        # [seq d_model] · [d_model d_head] -> [seq d_head]
        own = [x @ W + b for x, (W, b) in zip(normed, weights, strict=True)]
        edits = {
            Site(0, kind): Apply(lambda x, mine=mine: x.at[:, here].set(mine))
            for kind, mine in zip(kinds, own, strict=True)
        }
        tap = Tap(NOTHING, edits, {Site(0, kind) for kind in kinds_written(block)}, layer=0)
        block.attend(streams[row], masks[row], tap)
        return attention_writes(graph, block, {site.kind: value for site, value in tap.cache.items()})[here]

    return jax.vmap(one)(rows, *reads)


def _alone(block: Block, head: Int[Array, ""]) -> tuple[Block, Int[Array, ""] | int]:
    """A block with one head, and its number there; as it is where a norm is over all heads, so that each depends on the others."""
    attn = block.attn
    if block.ln1_post is not None or any(norm is not None and norm.joint for norm in (attn.q_norm, attn.k_norm)):
        return block, head
    of_heads = lambda attn: [attn.W_Q, attn.b_Q, attn.W_K, attn.b_K, attn.W_V, attn.b_V, attn.W_O]
    only = eqx.tree_at(of_heads, attn, [x[head][None] for x in of_heads(attn)])
    return eqx.tree_at(lambda block: block.attn, block, only), 0


@ft.partial(jax.jit, static_argnames="graph")
def _run_mlp(graph: ComponentGraph, block: Block, reads: Stream) -> Stream:
    """What an MLP writes."""

    def one(read):
        _, values = feed_own(block, read, read, record=kinds_written(block))
        return mlp_writes(graph, block, values)[0]

    return jax.vmap(one)(reads)
