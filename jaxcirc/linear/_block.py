r"""The position-local links of a linearised block, in closed form.

A block is a chain of maps, of which attention alone moves anything between positions. The others take a vector at a position to a vector
at the same position: linear maps, the derivative of a layer norm, that of an activation function. An item `[n width]` at positions
`[n]` is pushed forward, or pulled back, link by link.

- Layer norm with value $\hat y$ (before weight and bias) and scale $s$: $dy = (dx - \overline{dx} - \hat y\,\overline{\hat y\,dx}) / s$;
  with the scale held the last term is missing.
- MLP: $d\,\mathrm{pre} = W_{in}^T dx$, $d\,\mathrm{post} = act'(\mathrm{pre}) \odot d\,\mathrm{pre}$,
  $d\,\mathrm{out} = W_{out}^T d\,\mathrm{post}$.
"""

from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._precision import widened
from .._sites import Kind, Site
from ..parts import LayerNorm
from ._attention import AttentionMap
from ._segment import Span
from ._tiles import take


Items = Float[Array, "n width"]
Positions = Int[Array, " n"]
Push = Callable[[Items, Positions], Items]


class Link(NamedTuple):
    """A local map from the value at one kind of site to that at the next."""

    source: Kind
    target: Kind
    push: Push
    width: int  # of the source

    def pull(self, covectors: Float[Array, "n width_target"], positions: Positions) -> Float[Array, "n width_source"]:
        like = jax.ShapeDtypeStruct((covectors.shape[0], self.width), covectors.dtype)
        return jax.linear_transpose(lambda x: self.push(x, positions), like)(covectors)[0]


class Norm(NamedTuple):
    """A layer norm at its clean point: its value `y` `[seq d_model]` before weight and bias, its `scale` `[seq 1]`, which is `live` or
    held, and its `weight`.
    """

    y: Float[Array, "seq d_model"]
    scale: Float[Array, "seq 1"]
    weight: Float[Array, " d_model"] | None
    live: bool

    def push(self, x: Items, positions: Positions) -> Items:
        out = x - jnp.mean(x, axis=-1, keepdims=True)
        if self.live:
            here = take(self.y, positions)
            out = out - here * jnp.mean(here * x, axis=-1, keepdims=True)
        out = out / take(self.scale, positions)
        return out if self.weight is None else out * self.weight


class LinearBlock(NamedTuple):
    """One block at its clean point: the norm at its entrance, links up to attention, attention, and links from there on, in execution
    order.
    """

    norm: Norm | None
    before: list[Link]
    heads: AttentionMap
    after: list[Link]

    @property
    def links(self) -> list[Link]:
        return [*self.before, *self.after]


def linearise(span: Span, layer: int, frozen: Collection[Kind]) -> LinearBlock:
    """Linearises block `layer` of the span, with the sites of kinds `frozen` held."""
    block = widened(span.blocks[layer])
    value, attn = _values(span, layer), block.attn
    flat = lambda W: W.transpose(1, 0, 2).reshape(W.shape[1], -1)  # [head d_model d_head] -> [d_model (head d_head)]
    d_model, d_z = attn.W_O.shape[-1], attn.W_O.shape[0] * attn.W_O.shape[1]
    middle = Kind.RESID_MID if block.has_middle else Kind.RESID_POST
    norm = _norm(block.ln1, value[Kind.RESID_PRE], value.get(Kind.LN1_SCALE), frozen)
    before = [
        Link(Kind.RESID_PRE, Kind.LN1_NORMALIZED, norm.push if norm else _same, d_model),
        Link(Kind.LN1_NORMALIZED, Kind.Q, _dense(flat(attn.W_Q)), d_model),
        Link(Kind.LN1_NORMALIZED, Kind.K, _dense(flat(attn.W_K)), d_model),
        Link(Kind.LN1_NORMALIZED, Kind.V, _dense(flat(attn.W_V)), d_model),
    ]
    after = [
        Link(Kind.RESID_PRE, middle, _same, d_model),
        Link(Kind.Z, Kind.ATTN_OUT, _dense(attn.W_O.reshape(d_z, d_model)), d_z),
        Link(Kind.ATTN_OUT, middle, _same, d_model),
    ]
    if block.mlp is not None:
        pre, d_mlp = value[Kind.MLP_PRE], block.mlp.W_in.shape[1]
        slope = jax.jvp(block.mlp.act, (pre,), (jnp.ones_like(pre),))[1]  # the activation is elementwise
        norm2 = _norm(block.ln2, value[block.mlp_reads], value.get(Kind.LN2_SCALE), frozen)
        after += [
            Link(block.mlp_reads, Kind.LN2_NORMALIZED, norm2.push if norm2 else _same, d_model),
            Link(Kind.LN2_NORMALIZED, Kind.MLP_PRE, _dense(block.mlp.W_in), d_model),
            Link(Kind.MLP_PRE, Kind.MLP_POST, lambda x, t: x * take(slope, t), d_mlp),
            Link(Kind.MLP_POST, Kind.MLP_OUT, _dense(block.mlp.W_out), d_mlp),
            Link(Kind.MLP_OUT, Kind.RESID_POST, _same, d_model),
        ]
        after += [Link(Kind.RESID_MID, Kind.RESID_POST, _same, d_model)] if block.has_middle else []
    stopped = {*frozen, *([Kind.ATTN_OUT] if Kind.RESULT in frozen else [])}
    held = lambda link: link.target in stopped
    # Laid out as products with many vectors read them, once and not in every part of a loop.
    out_first = lambda W: jax.lax.optimization_barrier(W.transpose(0, 2, 1))
    weights = map(out_first, (attn.W_Q, attn.W_K, attn.W_V))
    values = (value[kind] for kind in (Kind.Q, Kind.K, Kind.V, Kind.Z, Kind.PATTERN))
    heads = AttentionMap(*values, attn.scale, *weights, span.masks[layer], _paths(frozen))
    return LinearBlock(norm, [x for x in before if not held(x)], heads, [x for x in after if not held(x)])


def _paths(frozen: Collection[Kind]) -> frozenset[Kind]:
    if Kind.Z in frozen:
        return frozenset()
    moving = {Kind.V} if {Kind.PATTERN, Kind.ATTN_SCORES} & set(frozen) else {Kind.Q, Kind.K, Kind.V}
    return frozenset(moving - set(frozen))


def push(links: list[Link], items: dict[Kind, Items], positions: Positions) -> dict[Kind, Items]:
    """The images of items at every kind that the links reach from where the items are."""
    items = dict(items)
    for link in links:
        if link.source in items:
            image = link.push(items[link.source], positions)
            items[link.target] = items[link.target] + image if link.target in items else image
    return items


def pull(links: list[Link], covectors: dict[Kind, Items], positions: Positions) -> dict[Kind, Items]:
    """Covectors at every kind from which the links lead to where the covectors are."""
    covectors = dict(covectors)
    for link in reversed(links):
        if link.target in covectors:
            image = link.pull(covectors[link.target], positions)
            covectors[link.source] = covectors[link.source] + image if link.source in covectors else image
    return covectors


def _same(x: Items, positions: Positions) -> Items:
    return x


def _dense(W: Float[Array, "d_in d_out"]) -> Push:
    return lambda x, positions: x @ W


def _norm(norm: LayerNorm | None, resid: Array | None, scale: Array | None, frozen: Collection[Kind]) -> "Norm | None":
    if norm is None:
        return None
    assert resid is not None
    assert scale is not None
    y = (resid - jnp.mean(resid, axis=-1, keepdims=True)) / scale
    return Norm(y, scale, norm.weight, norm.sites[0] not in frozen)


def _values(span: Span, layer: int) -> dict[Kind, Array]:
    """The clean run inside the block, by kind of site; what the block does not have is not there."""
    block = span.blocks[layer]
    kinds = [Kind.RESID_PRE, Kind.Q, Kind.K, Kind.V, Kind.Z, Kind.PATTERN]
    kinds += [] if block.mlp is None else [Kind.MLP_PRE]
    kinds += [Kind.RESID_MID] if block.has_middle else []
    kinds += [norm.sites[0] for norm in (block.ln1, block.ln2) if norm is not None]
    cache = span.record({Site(layer, kind) for kind in kinds})
    return {site.kind: value for site, value in cache.items()}
