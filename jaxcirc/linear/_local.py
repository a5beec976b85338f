r"""The local maps of a block's parts: in closed form where a part has registered one, by autodiff of its own code where it has not.

A part is any callable `part(x, tap)` from `[seq d_model]` to `[seq d_model]` that works on each position by itself; `local_maps` of a
norm, a plain MLP and an MLP of a user's own differ in speed, not in value. Closed forms are for exactly the class that registered them: a
class derived from it may compute anything.

- Norm with value $\hat y$ (before weight and bias) and scale $s$: $d\hat y = (dx - \hat y\,\overline{\hat y\,dx}) / s$, with $dx$ less
  its mean first in a layer norm; with the scale held the second term is missing. Then the weight.
- MLP: $d\,\mathrm{pre} = W_{in}^T dx$, $d\,\mathrm{post} = act'(\mathrm{pre}) \odot d\,\mathrm{pre}$,
  $d\,\mathrm{out} = W_{out}^T d\,\mathrm{post}$; a gated one has two such paths, each times what the other has. Where its gates $g$ are
  an end or held, a plain one has two as well, $d\,\mathrm{post} = g \odot d\,\mathrm{pre} + \mathrm{pre} \odot dg$.
"""

import functools as ft
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._dependence import is_elementwise, keeps_positions
from .._edits import Add, Detach
from .._indexing import take
from .._precision import wide, widened
from .._sites import Kind, Site
from .._tap import EditEach, Everything, Tap
from ..graph import graph_of, structure_of
from ..parts import gate_of, GatedMLP, LayerNorm, MLP, Norm, RMSNorm
from ._maps import dense, diagonal, Items, LocalMap, Positions, Push
from ._slots import Slot


Values = dict[Kind, Array]  # of the clean run, by kind of site, each `[seq width]`


class LinearNorm(NamedTuple):
    """A norm at its clean point: its value `y` before weight and bias, its `scale`, which is `live` or held, and its `weight`; whether it
    subtracts the mean first (`centres`), and whether the mean of squares runs over all axes of a position (`joint`).
    """

    y: Float[Array, "seq ..."]
    scale: Float[Array, "seq ..."]
    weight: Float[Array, "..."] | None
    live: bool
    centres: bool
    joint: bool

    def push(self, x: Items, positions: Positions) -> Items:
        """Takes vectors, flat, to those of `y`."""
        out = x.reshape(len(x), *self.y.shape[1:])
        axes = tuple(range(1, out.ndim)) if self.joint else -1
        if self.centres:
            out = out - jnp.mean(out, axis=axes, keepdims=True)
        if self.live:
            here = take(self.y, positions)
            out = out - here * jnp.mean(here * out, axis=axes, keepdims=True)
        return (out / take(self.scale, positions)).reshape(x.shape)

    def weigh(self, y: Items, positions: Positions) -> Items:
        """Takes vectors of `y`, flat, through the weight."""
        return y if self.weight is None else (y.reshape(len(y), *self.y.shape[1:]) * self.weight).reshape(y.shape)


def norm_at(norm: Norm, values: Values, frozen: Collection[Kind]) -> LinearNorm:
    """Linearises a norm at its value and the scale by which it divided."""
    scale, value = norm.sites
    clean = values[value], values[scale]
    if isinstance(norm, LayerNorm):
        return LinearNorm(*clean, widened(norm).weight, scale not in frozen, centres=True, joint=False)
    weight = None if norm.weight is None else norm.offset + wide(norm.weight)
    return LinearNorm(*clean, weight, scale not in frozen, centres=False, joint=norm.joint)


def local_maps(slot: Slot, part: Any, values: Values, frozen: Collection[Kind]) -> list[LocalMap]:
    """The maps between the kinds of a part's sites, in execution order, at the clean values and with the kinds `frozen` held."""
    made = CLOSED[type(part)](slot, part, values, frozen) if has_closed_form(part) else _by_autodiff(slot, part, values)
    return [each for each in made if each.target not in frozen]


def has_closed_form(part: Any) -> bool:
    """Whether a part is of a class that registered a closed form, and of those that it covers."""
    return type(part) in CLOSED and (type(part) not in (MLP, GatedMLP) or is_elementwise(part.act))


def has_local_maps(slot: Slot, part: Any, resid: Float[Array, "seq d_model"]) -> bool:
    """Whether a part works on each position by itself, as its closed form or its code says, where the residual stream is as `resid`."""
    return has_closed_form(part) or _is_local(*structure_of(part), slot, resid.shape[1], resid.dtype)


@ft.lru_cache(maxsize=256)
def _is_local(tree: Any, leaves: tuple[Any, ...], slot: Slot, d_model: int, dtype: Any) -> bool:
    everything = lambda x, *leaves: list(_values_of(slot, jax.tree.unflatten(tree, leaves), x).values())
    x = jax.ShapeDtypeStruct((3, d_model), dtype)  # three positions stand for any number
    return keeps_positions(everything, x, *leaves, axes=[0, *(None for _ in leaves)])


def _norm(slot: Slot, norm: Norm, values: Values, frozen: Collection[Kind]) -> list[LocalMap]:
    return norm_maps(norm_at(norm, values, frozen), slot.reads, norm.sites[1], slot.writes)


def norm_maps(norm: LinearNorm, reads: Kind, value: Kind, writes: Kind) -> list[LocalMap]:
    """Makes the maps from what a norm reads to its value, and from there to what comes of it."""
    width = math.prod(norm.y.shape[1:])
    return [LocalMap(reads, value, norm.push, width), LocalMap(value, writes, norm.weigh, width)]


def _plain_mlp(slot: Slot, mlp: MLP, values: Values, frozen: Collection[Kind]) -> list[LocalMap]:
    mlp = widened(mlp)
    d_model, d_mlp = mlp.W_in.shape
    pre, gate = values[Kind.MLP_PRE], values.get(Kind.MLP_GATE)
    slope = lambda function: _value_and_slope(function, pre)[1]
    if gate is None:
        through = [LocalMap(Kind.MLP_PRE, Kind.MLP_POST, diagonal(slope(mlp.act)), d_mlp)]
    else:
        through = [
            LocalMap(Kind.MLP_PRE, Kind.MLP_GATE, diagonal(slope(ft.partial(gate_of, mlp.act))), d_mlp),
            LocalMap(Kind.MLP_PRE, Kind.MLP_POST, diagonal(gate), d_mlp),
            LocalMap(Kind.MLP_GATE, Kind.MLP_POST, diagonal(pre), d_mlp),
        ]
    return [
        LocalMap(slot.reads, Kind.MLP_PRE, dense(mlp.W_in), d_model),
        *through,
        LocalMap(Kind.MLP_POST, slot.writes, dense(mlp.W_out), d_mlp),
    ]


def _gated_mlp(slot: Slot, mlp: GatedMLP, values: Values, frozen: Collection[Kind]) -> list[LocalMap]:
    mlp = widened(mlp)
    d_model, d_mlp = mlp.W_in.shape
    gate, slope = _value_and_slope(mlp.act, values[Kind.MLP_PRE])
    linear = values[Kind.MLP_PRE_LINEAR]
    if Kind.MLP_GATE in values:
        through = [
            LocalMap(Kind.MLP_PRE, Kind.MLP_GATE, diagonal(slope), d_mlp),
            LocalMap(Kind.MLP_GATE, Kind.MLP_POST, diagonal(linear), d_mlp),
        ]
    else:
        through = [LocalMap(Kind.MLP_PRE, Kind.MLP_POST, diagonal(slope * linear), d_mlp)]
    return [
        LocalMap(slot.reads, Kind.MLP_PRE, dense(mlp.W_gate), d_model),
        LocalMap(slot.reads, Kind.MLP_PRE_LINEAR, dense(mlp.W_in), d_model),
        *through,
        LocalMap(Kind.MLP_PRE_LINEAR, Kind.MLP_POST, diagonal(gate), d_mlp),
        LocalMap(Kind.MLP_POST, slot.writes, dense(mlp.W_out), d_mlp),
    ]


def _value_and_slope(act: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return jax.jvp(act, (x,), (jnp.ones_like(x),))


CLOSED: dict[type, Callable[..., list[LocalMap]]] = {
    LayerNorm: _norm,
    RMSNorm: _norm,
    MLP: _plain_mlp,
    GatedMLP: _gated_mlp,
}


def _by_autodiff(slot: Slot, part: Any, values: Values) -> list[LocalMap]:
    """Makes a map between every two kinds of the part's sites, what it reads and makes among them, of which one feeds the other first."""
    x = values[slot.reads]
    feeds, widths = _graph_of(*structure_of(part), slot, x.shape[1], x.dtype)
    pairs = sorted(((source, target) for source in feeds for target in feeds[source]), key=lambda pair: pair[::-1])
    return [LocalMap(*pair, _derivative(slot, part, x, *pair), widths[pair[0]]) for pair in pairs]


def _derivative(slot: Slot, part: Any, x: Float[Array, "seq d_model"], source: Kind, target: Kind) -> Push:
    """Makes the map between two kinds of a part's sites, those between them held, by forward mode at the rows of `x` that are asked for."""

    def value(rows, step):
        edit = lambda site: None if site.kind == target else Add(step) if site.kind == source else Detach()
        tap = Tap({}, EditEach(edit), frozenset({Site(0, target)}), layer=0)
        _run(slot, part, rows, tap)
        return tap.cache[Site(0, target)]

    def push(items: Items, positions: Positions) -> Float[Array, "n width_target"]:
        rows = take(x, positions)
        return jax.jvp(lambda step: value(rows, step), (jnp.zeros_like(items),), (items,))[1]

    return push


def _run(slot: Slot, part: Any, x: Float[Array, "n d_model"], tap: Tap) -> None:
    """Runs a part, with what it reads and what it makes as sites."""
    tap(slot.writes, part(tap(slot.reads, x), tap))


def _values_of(slot: Slot, part: Any, x: Float[Array, "n d_model"]) -> Values:
    """Runs a part and returns the values at all of its sites, those that are made only where they are asked for among them."""
    tap = Tap({}, {}, Everything(), layer=0)
    _run(slot, part, x, tap)
    return {site.kind: value for site, value in tap.cache.items()}


@ft.lru_cache(maxsize=256)
def _graph_of(
    tree: Any, leaves: tuple[Any, ...], slot: Slot, d_model: int, dtype: Any
) -> tuple[dict[Kind, list[Kind]], dict[Kind, int]]:
    """Finds for each kind of a part's sites the kinds that read it first, and its width."""
    part, x = jax.tree.unflatten(tree, leaves), jax.ShapeDtypeStruct((1, d_model), dtype)
    forward = lambda edits, part, x: _run(slot, part, x, Tap({}, edits, frozenset(), layer=0))
    graph = graph_of(forward, part, x)
    shapes = jax.eval_shape(ft.partial(_values_of, slot), part, x)
    feeds = {site.kind: [s.kind for s in sorted(read)] for site, read in graph.items()}
    return feeds, {kind: value.shape[1] for kind, value in shapes.items()}
