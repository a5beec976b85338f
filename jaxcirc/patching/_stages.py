"""Receivers of a path, stage by stage: what they read while all that is not on the path is held at the clean run."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._edits import Replace
from .._precision import widened
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from ..graph import ComponentGraph
from ..models import Transformer
from ..parts import Block
from ..runs import Recorded


OF_PART = {"q": Kind.Q, "k": Kind.K, "v": Kind.V}
Change = Float[Array, "variant seq d_model"]
Part = tuple[int, str]  # the layer and what writes there, `"embed"`, `"attn"` or `"mlp"`
Enters = Callable[[Sequence[Part]], Change | None]  # the sum over parts
Given = Callable[[int], Bool[np.ndarray, "variant seq"] | None]  # where the write of a layer's MLP is itself sent


class Stage(NamedTuple):
    """Receivers of one stage: of each layer the heads whose query, key or value reads `[head]`, the layers whose MLP does, and whether the
    logits do.
    """

    heads: dict[int, dict[Kind, Bool[np.ndarray, " head"]]]
    mlps: frozenset[int]
    logits: bool

    @property
    def layers(self) -> set[int]:
        return {*self.heads, *self.mlps}


class Read(NamedTuple):
    """What the receivers of a stage make of what they read: queries, keys and values by site `[variant seq head d_head]`, by how much the
    MLPs' outputs change, by layer, and by how much what the logits read does.
    """

    heads: dict[Site, Float[Array, "variant seq head d_head"]]
    mlps: dict[int, Change]
    logits: Change | None


def stage_of(graph: ComponentGraph, receivers: list[int]) -> Stage:
    """The stage of receivers by number."""
    heads: dict[int, dict[Kind, np.ndarray]] = {}
    slots = [graph.receiver_slots[number] for number in receivers]
    for slot in slots:
        if slot.part in OF_PART:
            count = graph.n_heads if slot.part == "q" else graph.n_kv_heads
            of_layer = heads.setdefault(slot.layer, {})
            of_layer.setdefault(OF_PART[slot.part], np.zeros(count, bool))[slot.head] = True
    mlps = frozenset(slot.layer for slot in slots if slot.part == "mlp")
    return Stage(heads, mlps, any(slot.part == "logits" for slot in slots))


def senders_of(graph: ComponentGraph, part: Part) -> Int[np.ndarray, " some"]:
    """The senders of a part of a layer, by number."""
    (layer, kind), shape, attention = part, graph.of_layer, graph.n_heads + graph.biases
    first = shape.first + layer * shape.senders
    middle, end = first + attention, first + shape.senders
    return np.arange(*{"embed": (0, shape.first), "attn": (first, middle), "mlp": (middle, end)}[kind])


def sites_read(model: Transformer, stages: list[Stage], *, norms: bool) -> set[Site]:
    """What is recorded of the clean run; with `norms` also the scales of norms."""
    block, layers = model.blocks[0], range(model.n_layers)
    kinds = [Kind.RESID_PRE, Kind.ATTN_OUT, *([] if block.mlp is None else [Kind.MLP_OUT, block.mlp_reads])]
    if norms:
        kinds += [
            kind for kind, part in {Kind.LN1_SCALE: block.ln1, Kind.LN2_SCALE: block.ln2}.items() if part is not None
        ]
    heads = {Site(layer, kind) for stage in stages for layer in stage.heads for kind in OF_PART.values()}
    return heads | {Site(layer, kind) for layer in layers for kind in kinds}


def read_stage(
    model: Transformer,
    run: Recorded,
    stage: Stage,
    enters: Enters,
    given: Given,
    rows: Int[np.ndarray, " variant"],
    where: Bool[np.ndarray, "batch seq"],
    *,
    recompute: bool,
    norms: bool,
) -> Read:
    """Adds up, layer by layer, what enters the stream beside the clean run, and lets the receivers read it.

    **Arguments:** - `run`: the clean one. - `enters`: what is added behind parts of layers, `None` for nothing. - `given`: where
    the write of an MLP is among that, `None` for nowhere. - `where`: at which positions of each prompt receivers read it. - `recompute`:
    whether MLPs on the way are computed anew from it, where their write is not given. - `norms`: whether the receivers' norms divide by
    what they did in the clean run.
    """
    heads, mlps = {}, {}
    change, waiting = None, [(-1, "embed")]  # parts are added together, where something reads them
    last = model.n_layers - 1 if stage.logits else max(stage.layers)
    for layer in range(last + 1):
        block, values = model.blocks[layer], run.in_layer(layer)
        of_heads, of_mlp = layer in stage.heads, block.mlp is not None and (layer in stage.mlps or recompute)
        if of_heads or (of_mlp and block.parallel):
            change, waiting = sum_of(change, enters(waiting)), []
        before = change
        if of_heads and change is not None:
            chosen = stage.heads[layer]
            own = {kind: values[kind] for kind in chosen}
            scale = values.get(Kind.LN1_SCALE) if norms else None
            read = _read_heads(block, rows, values[Kind.RESID_PRE], change, own, chosen, where, scale)
            heads |= {Site(layer, kind): value for kind, value in read.items()}
        waiting.append((layer, "attn"))
        if block.mlp is None:
            continue
        if of_mlp and not block.parallel:
            change, waiting = sum_of(change, enters(waiting)), []
            before = change
        if of_mlp and before is not None:
            scale = values.get(Kind.LN2_SCALE) if norms else None
            reads = block, rows, values[block.mlp_reads], before, values[Kind.MLP_OUT]
            if layer in stage.mlps:
                mlps[layer] = _read_mlp(*reads, where[rows], scale)
            if recompute:
                sent = given(layer)
                free = np.ones_like(where[rows]) if sent is None else ~sent
                change = sum_of(change, _read_mlp(*reads, free, None))
        waiting.append((layer, "mlp"))
    change = sum_of(change, enters(waiting)) if stage.logits else change
    return Read(heads, mlps, _only(change, where, rows) if stage.logits and change is not None else None)


def written_by(model: Transformer, run: Recorded, read: Read, rows: Int[np.ndarray, " variant"]) -> dict[Part, Change]:
    """By how much what the receivers' own parts write changes, by layer and part."""
    found = {(layer, "mlp"): change for layer, change in read.mlps.items()}
    for layer in {site.layer for site in read.heads}:
        assert layer is not None
        mine = {site.offset_layers(-layer): value for site, value in read.heads.items() if site.layer == layer}
        given = model.blocks[layer], run.masks[layer], rows, run.in_layer(layer)
        found[layer, "attn"] = _attention_change(*given, mine)
    return found


@jax.jit
def _read_heads(
    block: Block,
    rows,
    entering: Float[Array, "batch seq d_model"],
    change: Change,
    own: dict[Kind, Float[Array, "batch seq head d_head"]],
    chosen: dict[Kind, Bool[Array, " head"]],
    where,
    scale,
) -> dict[Kind, Float[Array, "variant seq head d_head"]]:
    """Queries, keys or values of chosen heads of the changed stream; of the others, and at other positions, the clean ones."""
    attn = widened(block.attn)
    weights = {Kind.Q: (attn.W_Q, attn.b_Q), Kind.K: (attn.W_K, attn.b_K), Kind.V: (attn.W_V, attn.b_V)}

    def one(row, change):
        edits = {} if scale is None else {Site(0, Kind.LN1_SCALE): Replace(scale[row])}
        x = entering[row] + change
        x = x if block.ln1 is None else block.ln1(x, Tap(NOTHING, edits, (), layer=0))
        found = {}
        for kind, heads in chosen.items():
            W, b = weights[kind]
            # [seq d_model] · [head d_model d_head] -> [seq head d_head]
            value = jnp.einsum("tm,hmd->thd", x, W) + b
            found[kind] = jnp.where(where[row][:, None, None] & heads[:, None], value, own[kind][row])
        return found

    return jax.vmap(one)(rows, change)


@jax.jit
def _read_mlp(block: Block, rows, entering, change: Change, own, where: Bool[Array, "variant seq"], scale) -> Change:
    """By how much the MLP's output changes where it reads the changed stream."""

    def one(row, change, where):
        edits = {} if scale is None else {Site(0, Kind.LN2_SCALE): Replace(scale[row])}
        tap = Tap(NOTHING, edits, {Site(0, Kind.MLP_OUT)}, layer=0)
        block.feed(entering[row] + change, tap)
        return jnp.where(where[:, None], tap.cache[Site(0, Kind.MLP_OUT)] - own[row], 0)

    return jax.vmap(one)(rows, change, where)


@jax.jit
def _attention_change(block: Block, masks, rows, clean: dict[Kind, Array], read: Mapping[Site, Array]) -> Change:
    """By how much attention's output changes with some queries, keys and values in place of the clean ones."""
    kinds = OF_PART.values()

    def one(row, read):
        value = {Site(0, kind): Replace(read.get(Site(0, kind), clean[kind][row])) for kind in kinds}
        tap = Tap(NOTHING, value, {Site(0, Kind.ATTN_OUT)}, layer=0)
        block.attend(clean[Kind.RESID_PRE][row], masks[row], tap)
        return tap.cache[Site(0, Kind.ATTN_OUT)] - clean[Kind.ATTN_OUT][row]

    return jax.vmap(one)(rows, read)


@jax.jit
def added(one: Change, other: Change) -> Change:
    return one + other


def sum_of(one: Change | None, other: Change | None) -> Change | None:
    """The sum of two changes, of which `None` is none."""
    if one is None or other is None:
        return other if one is None else one
    return added(one, other)


@jax.jit
def _only(change: Change, where, rows) -> Change:
    """The change at the positions where it is read."""
    return jnp.where(where[rows][..., None], change, 0)
