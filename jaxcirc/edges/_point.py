"""The clean run that edges are taken at: values, and the metric's gradients, with what is frozen held.

Block by block, there and back: blocks share their programs. On the way back a block is linearised at the values of the way there, so that
of it only what is cheap, between these values, is computed again.
"""

import functools as ft
from collections.abc import Iterable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._edits import AbstractEdit, Add, Detach
from .._metrics import Metric
from .._run import metric_of_last, NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from .._typing import Keys, Mask, Resid, Tokens
from ..models import Transformer
from ..parts import Block, GatedMLP


Values = dict[Kind, Float[Array, "..."]]  # of one block
Kinds = frozenset[Kind]


class Point(eqx.Module):
    """One prompt's clean run.

    **Attributes:**

    - `values[layer]`, `gradients[layer]`: by kind of site; the gradients are those of the metric, `None` without one, and none below the
      layer that was asked for.
    - `embed`: what enters the first block, and of it the part of the positions, `None` where they are rotary.
    - `last`: the last residual stream, `last_gradient` the metric's there.
    - `frozen[layer]`: the kinds that are held in each block.
    """

    values: tuple[Values, ...]
    gradients: tuple[Values, ...] | None
    masks: tuple[Bool[Array, "q_seq k_seq"], ...]
    embed: Resid
    token: Resid
    positions: Resid | None
    embed_gradient: Resid | None
    last: Resid
    last_gradient: Resid | None
    frozen: tuple[Kinds, ...] = eqx.field(static=True)

    @property
    def seq(self) -> int:
        return self.last.shape[0]


def clean_point(
    model: Transformer,
    metric: Metric | None,
    tokens: Tokens,
    mask: Keys | None,
    sites: Iterable[Site],
    frozen: Iterable[Site],
    lowest: int,
) -> Point:
    """Runs a prompt there and back. **Arguments:** - `sites`: inside blocks, of which values and gradients are wanted beside those that all
    edges need. - `lowest`: the layer down to which gradients are wanted; those of the embedding are with layer 0.
    """
    held = frozenset(frozen)
    frozen_kinds = tuple(frozenset(s.kind for s in held if s.layer == layer) for layer in range(model.n_layers))
    more = {
        site.kind for site in sites if site.layer is not None
    }  # the same in all blocks, so that they share programs
    masks, ends = model.masks(tokens.shape[0], mask), model.without_blocks
    embed, outside = _embed(ends, tokens, mask)
    resid, values, entering = embed, [], []
    for block, each in zip(model.blocks, masks, strict=True):
        entering.append(resid)
        resid, found = _forward(block, each, resid, kinds=_there(block, _VALUES | more))
        values.append(found)
    gradient, gradients, last_gradient = None, None, None
    if metric is not None:
        outside_held = frozenset(site for site in held if site.layer is None)
        gradient = last_gradient = _at_end(ends, metric, resid, held=outside_held)
        gradients = []
        for layer in reversed(range(lowest, model.n_layers)):
            block, kinds = model.blocks[layer], _there(model.blocks[layer], _GRADIENTS | more)
            here = (block, masks[layer], entering[layer])
            known = {kind: values[layer][kind] for kind in _there(block, _KNOWN)}
            gradient, found = _backward(*here, gradient, known, frozen=frozen_kinds[layer], kinds=kinds)
            gradients.insert(0, found)
        gradients = [{}] * min(lowest, model.n_layers) + gradients
    return Point(
        values=tuple(values),
        gradients=None if gradients is None else tuple(gradients),
        masks=masks,
        embed=embed,
        token=outside[Site(None, Kind.EMBED)],
        positions=outside.get(Site(None, Kind.POS_EMBED)),
        embed_gradient=None if lowest > 0 else gradient,
        last=resid,
        last_gradient=last_gradient,
        frozen=frozen_kinds,
    )


# What a product with weights makes inside a block.
_KNOWN = frozenset({Kind.Q, Kind.K, Kind.V, Kind.RESID_MID, Kind.MLP_PRE, Kind.MLP_PRE_LINEAR})
_VALUES = _KNOWN | frozenset(
    {
        Kind.RESID_PRE,
        Kind.PATTERN,
        Kind.HEADS_OUT,
        Kind.LN1_POST_SCALE,
        Kind.MLP_POST,
        Kind.NEURONS_OUT,
        Kind.LN2_POST_SCALE,
    }
)
_GRADIENTS = frozenset({Kind.Z, Kind.ATTN_OUT, Kind.MLP_PRE, Kind.MLP_POST, Kind.MLP_OUT})


def _there(block: Block, kinds: Iterable[Kind]) -> Kinds:
    """Those of some kinds that a block has."""
    missing = set() if block.has_middle else {Kind.RESID_MID}
    missing |= set() if block.ln1_post is not None else {Kind.HEADS_OUT, Kind.LN1_POST_SCALE}
    missing |= set() if block.ln2_post is not None else {Kind.NEURONS_OUT, Kind.LN2_POST_SCALE}
    missing |= set() if isinstance(block.mlp, GatedMLP) else {Kind.MLP_PRE_LINEAR}
    missing |= {kind for kind in Kind if Kind.LN2_SCALE <= kind <= Kind.MLP_OUT} if block.mlp is None else set()
    return frozenset(kinds) - missing


@jax.jit
def _embed(ends: Transformer, tokens: Tokens, mask: Keys | None) -> tuple[Resid, dict[Site, Resid]]:
    tap = Tap(NOTHING, NOTHING, {Site(None, Kind.EMBED), Site(None, Kind.POS_EMBED)})
    return ends.embed(tokens, tap, mask), tap.cache


@ft.partial(jax.jit, static_argnames="kinds")
def _forward(block: Block, mask: Mask, resid: Resid, *, kinds: Kinds) -> tuple[Resid, Values]:
    tap = Tap(NOTHING, NOTHING, {Site(0, kind) for kind in kinds}, layer=0)
    out = block(resid, mask, tap)
    return out, {site.kind: value for site, value in tap.cache.items()}


class _At(AbstractEdit):
    """Takes for a value the one that is `known`, if it is, with the value's own derivatives unless it is `held`; and adds `step`."""

    known: Float[Array, "..."] | None
    step: Float[Array, "..."] | None
    held: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        x = jax.lax.stop_gradient(x) if self.held else x
        x = x if self.known is None else _moving_as(x, self.known)
        return x if self.step is None else Add(self.step)(x)


@jax.custom_jvp
def _moving_as(x: Float[Array, "..."], known: Float[Array, "..."]) -> Float[Array, "..."]:
    """Gives the value that is known for `x`, with the derivatives of `x`."""
    return known


@_moving_as.defjvp
def _(primals, tangents):
    return primals[1], tangents[0]


@ft.partial(jax.jit, static_argnames=("frozen", "kinds"))
def _backward(
    block: Block, mask: Mask, resid: Resid, gradient: Resid, known: Values, *, frozen: Kinds, kinds: Kinds
) -> tuple[Resid, Values]:
    """Pulls a gradient behind a block back to where it begins, and to the kinds of sites in it; `known` are values in it."""

    def run(resid, steps):
        at = lambda kind: _At(known.get(kind), steps.get(kind), kind in frozen)
        edits: Mapping[Site, AbstractEdit] = {Site(0, kind): at(kind) for kind in {*frozen, *known, *steps}}
        return block(resid, mask, Tap(NOTHING, edits, frozenset(), layer=0))

    shapes = jax.eval_shape(lambda resid: _forward(block, mask, resid, kinds=kinds)[1], resid)
    steps = {kind: jnp.zeros(shape.shape, shape.dtype) for kind, shape in shapes.items()}
    return jax.vjp(run, resid, steps)[1](gradient)


def holding(kinds: Iterable[Kind]) -> dict[Site, AbstractEdit]:
    """Edits that hold sites of one block."""
    return {Site(0, kind): Detach() for kind in kinds}


@ft.partial(jax.jit, static_argnames="held")
def _at_end(ends: Transformer, metric: Metric, resid: Resid, *, held: frozenset[Site]) -> Resid:
    """The metric's gradient at the last residual stream, with what is `held` behind it; `ends` is the model without blocks."""
    edits = dict.fromkeys(held, Detach())
    return jax.grad(lambda resid: metric_of_last(ends, metric, resid, edits))(resid)
