"""What claims are worth: each component run on what its children's edges carry, the same run once, many of them at once."""

import dataclasses
import functools as ft
from collections.abc import Hashable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from .._metrics import Metric
from .._sites import Kind, Site
from ..graph import ComponentGraph
from ..models import Transformer
from ..runs import metric_of_variants, of_size, rounded_up
from ._between import Put, Stream, stream_with
from ._drawn import Drawn
from ._plain import last_stream, Plain
from ._programs import run_head, run_mlp, stream_by_edges, Table, value_by_number


# Of values: below the number of data that of a plain run, from there on what was computed.
Numbers = Int[np.ndarray, " variant"]
Inputs = Int[np.ndarray, "row column"]  # what a value depends on, a row each


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
            found.append(run_mlp(graph, block, *reads))
        else:
            head = np.asarray(slot.head, np.int32)
            found.append(run_head(graph, block, masks, some[:, 0], plain.streams[cut], reads, head))
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
        value = value_by_number(plain.writes[name], tables.get(child.form), inputs[:, 1 + i])
        everywhere = np.ones((len(inputs), scene.seq), bool)
        columns = everywhere if positions is None else scene.columns[positions][inputs[:, -1]]
        puts.append(Put(graph.sender_slots[graph.sender(name)], value, columns))
    if puts and node.claim.paths == "any":
        return stream_with(scene.model, graph, plain, others, puts, cut)
    own = [plain.writes[put.slot.name] for put in puts]
    return stream_by_edges(plain.streams[cut], others, own, [(put.value, put.columns) for put in puts])


def _groups(scene: Scene, node: Drawn, count: int) -> list[Int[np.ndarray, " group"]]:
    """So many rows in groups of few sizes, which fit into the budget: a head reads as many streams as there are heads, thrice, and where a
    whole run is computed anew each head's output is there apart.
    """
    wide = node.claim.is_head or node.claim.paths == "any"
    most = max(1, scene.budget // scene.bytes_of(12 + (6 * scene.graph.n_heads if wide else 0)))
    return of_size(count, min(rounded_up(count), 1 << (most.bit_length() - 1)))
