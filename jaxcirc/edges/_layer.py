"""One block of a clean run: how its neurons and heads read the stream, and how they move with it. The same programs serve all layers."""

import functools as ft

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._sites import Kind
from .._typing import Mask, Resid
from ..nodes import Index
from ..parts import Block
from ..parts._attention import grouped_scores
from ._order import in_mlp
from ._point import Kinds, Values
from ._sublayer import AtRows, one_row, pull, pull_inside, push


class Layer(eqx.Module):
    """A block, the values in it, the metric's gradients there (`None` without one), and what is held."""

    block: Block
    mask: Mask
    values: Values
    gradients: Values | None
    frozen: Kinds = eqx.field(static=True)
    activation: str = eqx.field(static=True)

    def stream(self, kind: Kind) -> Resid:
        """What the sublayer reads in which a kind of site is."""
        return self.values[Kind.RESID_MID if in_mlp(kind) and self.block.has_middle else Kind.RESID_PRE]

    @property
    def neurons(self) -> Kind:
        return Kind.MLP_POST if self.activation == "post" else Kind.MLP_PRE

    def of_neurons(self, kind: Kind) -> Float[Array, "seq d_mlp"]:
        """The metric's derivative by each neuron; 1 without a metric."""
        return jnp.ones_like(self.values[Kind.MLP_POST]) if self.gradients is None else self.gradients[kind]

    def of_pattern(self) -> Float[Array, "head q_seq k_seq"]:
        """The metric's derivative by each probability, whether patterns are held or not: what is read there, along the gradient at `z`."""
        if self.gradients is None:
            return jnp.ones_like(self.values[Kind.PATTERN])
        return grouped_scores(self.gradients[Kind.Z], self.values[Kind.V])

    def of_scores(self) -> Float[Array, "head q_seq k_seq"]:
        """The same by each score: back through the softmax, unless patterns are held."""
        pattern = self.values[Kind.PATTERN]
        if self.gradients is None:
            return jnp.ones_like(pattern)
        if Kind.PATTERN in self.frozen:
            return jnp.zeros_like(pattern)
        # [head q_seq k_seq] · [head q_seq k_seq] -> [head q_seq 1]
        return pattern * (self.of_pattern() - jnp.sum(pattern * self.of_pattern(), axis=-1, keepdims=True))

    def pull(self, kind: Kind, covectors: Float[Array, "..."], stopped: Kinds = frozenset()) -> Resid:
        """Pulls a covector of the value at a site back through its sublayer, at all positions."""
        held = self.frozen | stopped
        return pull(self.block, self.mask, self.stream(kind), covectors, site=kind, frozen=held)

    def pull_at(self, kind: Kind, pos: Index, covectors: Float[Array, "1 ..."]) -> AtRows:
        """The same through a sublayer that works on each position by itself, at one."""
        row = one_row(self.stream(kind), jnp.asarray(pos))
        return pull(self.block, jnp.ones((1, 1), bool), row, covectors, site=kind, frozen=self.frozen)

    def pull_at_projection(self, kind: Kind, to: Kind, pos: Index, covectors: Float[Array, "..."]) -> AtRows:
        """Pulls a covector of scores or patterns back through the queries or keys, that at one position alone."""
        projected = pull_inside(self.block, self.mask, self.values, covectors, site=kind, to=to, frozen=self.frozen)
        return self.pull_at(to, pos, one_row(projected, jnp.asarray(pos)))

    def row_read(self, part: str, query: Index, key: Index) -> Index | None:
        """The one position that a part of a head reads; `None` where it may read several: the softmax compares a key with all others."""
        if part == "q":
            return query
        return key if part == "v" or (part == "k" and self.activation == "pre") else None

    def push(
        self, kind: Kind, pos: Index, vector: Float[Array, "1 d_model"], stopped: Kinds = frozenset()
    ) -> Float[Array, "..."]:
        """How the value at a site moves with the stream at one position: of an MLP's sites that position, of attention's all."""
        resid = self.stream(kind)
        if in_mlp(kind):
            alone = (jnp.ones((1, 1), bool), one_row(resid, jnp.asarray(pos)))
            return push(self.block, *alone, vector, site=kind, frozen=self.frozen)
        tangent = jnp.zeros_like(resid).at[pos].set(vector[0])
        return push(self.block, self.mask, resid, tangent, site=kind, frozen=self.frozen | stopped)


ToHeads = Float[Array, "head q_seq k_seq"]
STOPPED: dict[str, Kinds] = {
    "q": frozenset({Kind.K, Kind.V}),
    "k": frozenset({Kind.Q, Kind.V}),
    "qk": frozenset({Kind.V}),
    "v": frozenset(),
}


@jax.jit
def read_neuron(layer: Layer, pos: Index, index: Index) -> tuple[AtRows, Float[Array, ""], Float[Array, ""]]:
    """A neuron's gradient by the stream at its position, its activation, and the metric's derivative by it."""
    value = layer.values[Kind.MLP_POST]
    unit = jnp.zeros((1, value.shape[1]), value.dtype).at[0, index].set(layer.of_neurons(layer.neurons)[pos, index])
    gradient = layer.pull_at(layer.neurons, pos, unit)
    return gradient, value[pos, index], layer.of_neurons(Kind.MLP_POST)[pos, index]


@ft.partial(jax.jit, static_argnames="part")
def read_head(
    layer: Layer, head: Index, query: Index, key: Index, *, part: str
) -> tuple[AtRows, Float[Array, ""], Float[Array, ""]]:
    """The gradient of a part of a head at a pair of positions by the stream, at the row that it reads if there is one; the pair's
    probability, and the metric's derivative by it.
    """
    at, pattern = (head, query, key), layer.values[Kind.PATTERN]
    row, about = layer.row_read(part, query, key), (pattern[at], layer.of_pattern()[at])
    if part == "v":
        assert layer.gradients is not None
        v = layer.values[Kind.V]
        group = pattern.shape[0] // v.shape[1]
        unit = jnp.zeros_like(v[:1]).at[0, head // group].set(pattern[at] * layer.gradients[Kind.Z][query, head])
        return layer.pull_at(Kind.V, key, unit), *about
    scores = layer.activation == "pre"
    kind, factor = (Kind.ATTN_SCORES, layer.of_scores()) if scores else (Kind.PATTERN, layer.of_pattern())
    unit = jnp.zeros_like(pattern).at[at].set(factor[at])
    if row is None:
        return layer.pull(kind, unit, STOPPED[part]), *about
    return layer.pull_at_projection(kind, Kind.Q if part == "q" else Kind.K, row, unit), *about


@jax.jit
def move_neurons(layer: Layer, pos: Index, vector: Float[Array, "1 d_model"]) -> Float[Array, " d_mlp"]:
    """How neurons at a position move with the stream there, times the metric's derivative by them."""
    return layer.push(layer.neurons, pos, vector)[0] * layer.of_neurons(layer.neurons)[pos]


@ft.partial(jax.jit, static_argnames="part")
def move_heads(layer: Layer, pos: Index, vector: Float[Array, "1 d_model"], *, part: str) -> ToHeads:
    """How heads move at every pair of positions, through one of their parts, with the stream at one, times the metric's derivative."""
    pattern = layer.values[Kind.PATTERN]
    if part == "v":
        assert layer.gradients is not None
        moved = layer.push(Kind.V, pos, vector)
        group = pattern.shape[0] // moved.shape[1]
        # [q_seq head d_head] · [k_seq head d_head] -> [head q_seq k_seq]
        along = jnp.einsum("qhd,khd->hqk", layer.gradients[Kind.Z], jnp.repeat(moved, group, axis=1))
        return along * pattern
    scores = layer.activation == "pre"
    moved = layer.push(Kind.ATTN_SCORES if scores else Kind.PATTERN, pos, vector, STOPPED[part])
    return jnp.where(jnp.isfinite(moved), moved, 0) * (layer.of_scores() if scores else layer.of_pattern())
