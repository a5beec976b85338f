"""What is read in a block, as functions of the residual stream that enters it, with all held that a graph holds; and their derivatives.

They are the block's own code, with no derivative where something is held: so each is affine, or at the clean residual stream, where they
are linearised, taken for it. Programs take a block as an argument, and layers share them.
"""

import functools as ft
from collections.abc import Callable

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._edits import Detach
from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import EditEach, Tap
from .._typing import Mask, Resid
from ..models import Transformer
from ..parts import Block


HELD = frozenset(
    {
        Kind.PATTERN,
        Kind.LN1_SCALE,
        Kind.LN1_POST_SCALE,
        Kind.LN2_SCALE,
        Kind.MLP_GATE,
        Kind.LN2_POST_SCALE,
        Kind.FINAL_SCALE,
    }
)
BEFORE_ATTENTION = (Kind.RESID_PRE, Kind.LN1_NORMALIZED, Kind.ATTN_IN)
BEFORE_MLP = (Kind.RESID_MID, Kind.LN2_NORMALIZED, Kind.MLP_IN)


class Given(eqx.Module):
    """What a function of the residual stream is of, a block with its mask or the model without its blocks, and where it is linearised."""

    part: Block | Transformer
    mask: Mask | None
    clean: Resid

    def of_first(self, seq: int) -> "Given":
        return Given(self.part, None if self.mask is None else self.mask[:seq, :seq], self.clean[:seq])


@ft.partial(jax.jit, static_argnums=0)
def pull_back(
    function: Callable[..., Array], given: Given, covectors: Float[Array, "n seq _"]
) -> Float[Array, "n seq _"]:
    """Pulls covectors of what a function of the residual stream makes back to that."""
    given = given.of_first(covectors.shape[1])
    _, back = jax.vjp(lambda x: function(given.part, given.mask, x), given.clean)
    return jax.vmap(back)(covectors)[0]


@ft.partial(jax.jit, static_argnums=0)
def push_on(function: Callable[..., Array], given: Given, vectors: Float[Array, "n seq _"]) -> Float[Array, "n seq _"]:
    """Pushes vectors of the residual stream on to what a function makes of it."""
    given = given.of_first(vectors.shape[1])
    _, forward = jax.linearize(lambda x: function(given.part, given.mask, x), given.clean)
    return jax.vmap(forward)(vectors)


@ft.partial(jax.jit, static_argnums=0)
def constant_of(function: Callable[..., Array], given: Given) -> Float[Array, "seq width"]:
    """Computes what the linearised function makes of a residual stream of 0."""
    value, moved = jax.jvp(lambda x: function(given.part, given.mask, x), (given.clean,), (given.clean,))
    return value - moved


@ft.partial(jax.jit, static_argnames="kinds")
def values_in(block: Block, mask: Mask, resid: Resid, kinds: tuple[Kind, ...]) -> dict[Kind, Array]:
    """Computes what is at sites of a block in the clean run, each as one vector a position."""
    tap = Tap(NOTHING, NOTHING, frozenset(Site(0, kind) for kind in kinds), layer=0)
    block(resid, mask, tap)
    return {site.kind: value.reshape(value.shape[0], -1) for site, value in tap.cache.items()}


def _held_tap(*record: Site, layer: int | None = 0) -> Tap:
    """A tap by which no derivative passes what is held."""
    return Tap(NOTHING, EditEach(lambda site: Detach() if site.kind in HELD else None), frozenset(record), layer=layer)


def _of_attention(block: Block, mask: Mask, resid: Resid, kind: Kind) -> Resid:
    """Makes what is at a site of attention of the residual stream that enters it."""
    tap = _held_tap(Site(0, kind))
    block.attend(resid, mask, tap)
    return tap.cache[Site(0, kind)]


def _of_mlp(block: Block, mask: Mask, resid: Resid, kind: Kind) -> Resid:
    """Makes what is at a site of the MLP of the residual stream that the MLP reads."""
    tap = _held_tap(Site(0, kind))
    _ = block.feed(resid, tap) if block.has_middle else block(resid, mask, tap)
    return tap.cache[Site(0, kind)]


# One function a kind, made once, as programs are known by them. What an MLP adds is affine, too, as its gates are held.
OF_ATTENTION = {kind: ft.partial(_of_attention, kind=kind) for kind in BEFORE_ATTENTION}
OF_MLP = {kind: ft.partial(_of_mlp, kind=kind) for kind in (*BEFORE_MLP, Kind.MLP_OUT)}
ATTENTION = ft.partial(_of_attention, kind=Kind.ATTN_OUT)


def final_norm(ends: Transformer, mask: None, resid: Resid) -> Resid:
    """Makes what the unembedding reads of the last residual stream."""
    tap = _held_tap(layer=None)
    return resid if ends.ln_final is None else ends.ln_final(resid, tap)
