r"""The linearised model of one prompt: what is written to its residual stream goes on linearly to whatever reads it.

Held at their clean values are every attention pattern, the scale of every norm (in front of sublayers and behind them, of queries and keys,
the final one), and what every MLP adds, but for a linear path beside its dictionary. What is left is affine: attention moves values by its
pattern, norms subtract their mean and weigh, the residual stream adds up. So a vector $w$ that is written at one place changes what is
read at another by $J w$ with one matrix $J$, and nowhere does a path cross a nonlinearity (Ameisen et al. 2025, "Circuit Tracing",
Transformer Circuits; §3.1 of the linear attribution between replaced nonlinearities).

Attention's map is that of the block's own code, at the clean residual stream, with no derivative where something is held. `pull` brings
covectors of what is read back to everything that writes, `push` brings what is written forward to everything that reads; both go layer by
layer, for many at once, and over as many positions as the covectors or vectors have: in a causal model those up to the last that is read.
Axes: `n` covectors or vectors, each at the first `seq` positions of the prompt.
"""

import functools as ft
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._edits import Detach
from .._precision import wide, widened
from .._run import NOTHING
from .._sites import Kind, layer_of, Site
from .._tap import EditEach, Tap
from .._typing import Mask, Resid, Tokens
from ..models import Transformer
from ..parts import Block, GatedMLP
from ..runs import record


HELD = frozenset(
    {
        Kind.PATTERN,
        Kind.LN1_SCALE,
        Kind.LN1_POST_SCALE,
        Kind.LN2_SCALE,
        Kind.LN2_POST_SCALE,
        Kind.FINAL_SCALE,
    }
)
BEFORE_ATTENTION = (Kind.RESID_PRE, Kind.LN1_NORMALIZED, Kind.ATTN_IN)
BEFORE_MLP = (Kind.RESID_MID, Kind.LN2_NORMALIZED, Kind.MLP_IN)
FINAL = Site(None, Kind.LOGITS)  # read by directions of what the unembedding reads
Many: TypeAlias = Float[Array, "n seq width"]


class Skip(eqx.Module):
    """A linear path beside an MLP's dictionary: `x W` is added to the MLP's output, `x` the value at the kind of site `reads`."""

    W: Float[Array, "d_in d_model"]
    reads: Kind = eqx.field(static=True)

    def at(self, layer: int) -> tuple[Site, Float[Array, "d_in d_model"]]:
        return Site(layer, self.reads), self.W


class Linearised(eqx.Module):
    """A model at one prompt.

    **Attributes:**

    - `model`, `tokens` `[seq]`, and `masks` `[q_seq k_seq]`, one a layer.
    - `resid[cut]` `[seq d_model]`: the clean residual stream where it enters attention (`hook_resid_pre`) and the MLP (`hook_resid_mid`, of
      blocks that have one); the last at `Site(n_layers, Kind.RESID_PRE)`.
    - `skips[layer]`: linear paths beside MLPs.
    - `closed`: layers whose attention is replaced, too: what it adds is held, and only latents that read its output see through it.
    """

    model: Transformer
    tokens: Tokens
    masks: tuple[Mask, ...]
    resid: dict[Site, Resid]
    skips: dict[int, Skip]
    closed: frozenset[int] = eqx.field(static=True)

    @property
    def seq(self) -> int:
        return self.tokens.shape[0]

    @property
    def end(self) -> Site:
        """The last residual stream, as what would enter a block behind the last."""
        return Site(self.model.n_layers, Kind.RESID_PRE)

    def cut_of(self, read: Site) -> Site:
        """The residual stream that a read is made of, or attention's output for what reads that."""
        if read == FINAL:
            return self.end
        layer = layer_of(read)
        if read.kind == Kind.ATTN_OUT:
            return read
        if read.kind in BEFORE_ATTENTION:
            return Site(layer, Kind.RESID_PRE)
        return Site(layer, self.model.blocks[layer].mlp_reads)

    def values(self, layer: int, *kinds: Kind) -> dict[Kind, Float[Array, "seq width"]]:
        """Computes what is at sites of a layer in the clean run, each as one vector a position."""
        return _values(self.model.blocks[layer], self.masks[layer], self.resid[Site(layer, Kind.RESID_PRE)], kinds)

    def embeddings(self) -> list[Float[Array, "seq d_model"]]:
        """What enters the first block: the tokens' embeddings, and those of positions if they are learned."""
        return _embeddings(self.model.without_blocks, self.tokens)

    def pull(
        self, covectors: Mapping[Site, Float[Array, "n seq d_model"]]
    ) -> Iterator[tuple[Site, Float[Array, "n seq d_model"]]]:
        """Pulls covectors back to all that writes before what they read.

        **Arguments:** - `covectors`: at cuts (`cut_of`, `pull_read`), asked for by `get` when the way back comes by.

        **Returns:** layer by layer, from behind: the site where something is written (`hook_mlp_out`, `hook_attn_out`, at the end
        `hook_embed`) with the gradient there, of what is read with respect to what is added to the residual stream.
        """
        at: dict[Site, Array | None] = {}
        arrived = lambda cut: _sum(at.pop(cut, None), covectors.get(cut))
        for layer in reversed(range(self.model.n_layers)):
            block, attn = self.model.blocks[layer], Site(layer, Kind.ATTN_OUT)
            pre, middle = Site(layer, Kind.RESID_PRE), Site(layer, Kind.RESID_MID)
            out = written = arrived(Site(layer + 1, Kind.RESID_PRE))
            by_skip: dict[Site, Array | None] = {}
            if out is not None and block.mlp is not None:
                yield Site(layer, Kind.MLP_OUT), out
                if layer in self.skips:
                    read, W = self.skips[layer].at(layer)
                    by_skip[self.cut_of(read)] = self.pull_read(read, _times(out, wide(W).T))
            if block.has_middle:
                written = _sum(_sum(out, by_skip.get(middle)), arrived(middle))
            read = covectors.get(attn)
            through, gradient = (read, written) if layer in self.closed else (_sum(written, read),) * 2
            if gradient is not None:
                yield attn, gradient
            passed = None if through is None else _pull(_attention, self._block(layer), through)
            at[pre] = _sum(_sum(written, by_skip.get(pre)), passed)
        if (gradient := arrived(Site(0, Kind.RESID_PRE))) is not None:
            yield Site(None, Kind.EMBED), gradient

    def push(
        self, vectors: Mapping[Site, Float[Array, "n seq d_model"]]
    ) -> Iterator[tuple[Site, Float[Array, "n seq d_model"]]]:
        """Pushes vectors that are written at `hook_mlp_out`, `hook_attn_out` or `hook_embed` forward to all that reads behind.

        **Returns:** layer by layer: the cuts, and attention's output as made of what it reads, with how each is moved; what is read of a
        cut is `push_read`'s.
        """
        moved = vectors.get(Site(None, Kind.EMBED))
        for layer, block in enumerate(self.model.blocks):
            attn, entering = Site(layer, Kind.ATTN_OUT), {Site(layer, Kind.RESID_PRE): moved}
            made = None
            if moved is not None:
                yield Site(layer, Kind.RESID_PRE), moved
                made = _push(_attention, self._block(layer), moved)
                yield attn, made
            moved = _sum(_sum(moved, vectors.get(attn)), None if layer in self.closed else made)
            if block.has_middle and moved is not None:
                entering[Site(layer, Kind.RESID_MID)] = moved
                yield Site(layer, Kind.RESID_MID), moved
            if layer in self.skips:
                read, W = self.skips[layer].at(layer)
                if (entered := entering.get(self.cut_of(read))) is not None:
                    moved = _sum(moved, _times(self.push_read(read, entered), wide(W)))
            moved = _sum(moved, vectors.get(Site(layer, Kind.MLP_OUT)))
        if moved is not None:
            yield self.end, moved

    def pull_read(self, read: Site, covectors: Many) -> Float[Array, "n seq d_model"]:
        """Pulls covectors of what is read at a site back to its cut; at `FINAL` they are directions of what the unembedding reads."""
        if self.cut_of(read) == read:
            return covectors
        return _pull(*self._reading(read), covectors)

    def push_read(self, read: Site, vectors: Float[Array, "n seq d_model"]) -> Many:
        """Pushes vectors at the cut of a read to what is read there."""
        if self.cut_of(read) == read:
            return vectors
        return _push(*self._reading(read), vectors)

    def constant(self, read: Site) -> Float[Array, "seq width"]:
        """Computes what is read at a site if the residual stream before it is 0: biases of norms, of attention its constants."""
        if read.kind == Kind.ATTN_OUT:
            return _constant(_attention, self._block(layer_of(read)))
        if self.cut_of(read) == read:
            return jnp.zeros_like(self.resid[read])
        return _constant(*self._reading(read))

    def _block(self, layer: int) -> "_Given":
        return _Given(self.model.blocks[layer], self.masks[layer], self.resid[Site(layer, Kind.RESID_PRE)])

    def _reading(self, read: Site) -> tuple[Callable[..., Array], "_Given"]:
        """The function that makes a read of its cut, and what it is given."""
        clean = self.resid[self.cut_of(read)]
        if read == FINAL:
            return _final, _Given(self.model.without_blocks, None, clean)
        layer = layer_of(read)
        given = _Given(self.model.blocks[layer], self.masks[layer], clean)
        if read.kind in BEFORE_ATTENTION:
            return _BEFORE_ATTENTION[read.kind], given
        return _gated if read.kind == Kind.MLP_OUT else _BEFORE_MLP[read.kind], given


class _Given(eqx.Module):
    """What a function of the residual stream is of, a block with its mask or the model without its blocks, and where it is linearised."""

    part: Block | Transformer
    mask: Mask | None
    clean: Resid

    def of_first(self, seq: int) -> "_Given":
        return _Given(self.part, None if self.mask is None else self.mask[:seq, :seq], self.clean[:seq])


def linearise(
    model: Transformer, tokens: Tokens, skips: Mapping[int, Skip] = NOTHING, closed: frozenset[int] = frozenset()
) -> Linearised:
    """Runs a prompt and linearises the model at it: `skips` and `closed` as `Linearised` says."""
    cuts = [Site(layer, kind) for layer, block in enumerate(model.blocks) for kind in {Kind.RESID_PRE, block.mlp_reads}]
    seq = tokens.shape[0]
    recorded = record(model, np.asarray(tokens)[None], np.ones((1, seq), bool), cuts)
    end = Site(model.n_layers, Kind.RESID_PRE)
    resid = {cut: recorded.at_cut(cut)[0] for cut in [*cuts, end]}
    return Linearised(model, jnp.asarray(tokens), model.masks(seq, None), resid, dict(skips), closed)


def _sum(one: Array | None, other: Array | None) -> Array | None:
    return other if one is None else one if other is None else one + other


@jax.jit
def _times(x: Many, W: Float[Array, "width other"]) -> Float[Array, "n seq other"]:
    return jnp.einsum("nsw,wo->nso", x, W)  # [n seq width] · [width other] -> [n seq other]


@ft.partial(jax.jit, static_argnums=0)
def _pull(function: Callable[..., Array], given: _Given, covectors: Float[Array, "n seq _"]) -> Float[Array, "n seq _"]:
    given = given.of_first(covectors.shape[1])
    _, back = jax.vjp(lambda x: function(given.part, given.mask, x), given.clean)
    return jax.vmap(back)(covectors)[0]


@ft.partial(jax.jit, static_argnums=0)
def _push(function: Callable[..., Array], given: _Given, vectors: Float[Array, "n seq _"]) -> Float[Array, "n seq _"]:
    given = given.of_first(vectors.shape[1])
    _, forward = jax.linearize(lambda x: function(given.part, given.mask, x), given.clean)
    return jax.vmap(forward)(vectors)


@ft.partial(jax.jit, static_argnums=0)
def _constant(function: Callable[..., Array], given: _Given) -> Float[Array, "seq width"]:
    value, moved = jax.jvp(lambda x: function(given.part, given.mask, x), (given.clean,), (given.clean,))
    return value - moved


@jax.jit
def _embeddings(ends: Transformer, tokens: Tokens) -> list[Resid]:
    tap = Tap(NOTHING, NOTHING, frozenset({Site(None, Kind.EMBED), Site(None, Kind.POS_EMBED)}))
    ends.embed(tokens, tap)
    return [tap.cache[site] for site in sorted(tap.cache)]


@ft.partial(jax.jit, static_argnames="kinds")
def _values(block: Block, mask: Mask, resid: Resid, kinds: tuple[Kind, ...]) -> dict[Kind, Array]:
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
    """Makes what is at a site in front of the MLP of the residual stream that the MLP reads."""
    tap = _held_tap(Site(0, kind))
    _ = block.feed(resid, tap) if block.has_middle else block(resid, mask, tap)
    return tap.cache[Site(0, kind)]


# One function a kind, made once, as programs are known by them.
_BEFORE_ATTENTION = {kind: ft.partial(_of_attention, kind=kind) for kind in BEFORE_ATTENTION}
_BEFORE_MLP = {kind: ft.partial(_of_mlp, kind=kind) for kind in BEFORE_MLP}
_attention = ft.partial(_of_attention, kind=Kind.ATTN_OUT)


def _gated(block: Block, mask: Mask, resid: Resid) -> Resid:
    """Makes an MLP's output with its gates held, `act(pre) / pre`, of a gated MLP `act(gate)`, so that it is affine in what it reads."""
    x = _of_mlp(block, mask, resid, Kind.MLP_IN)
    mlp, tap = widened(block.mlp), _held_tap()
    assert mlp is not None
    if isinstance(mlp, GatedMLP):
        post = jax.lax.stop_gradient(mlp.act(x @ mlp.W_gate + mlp.b_gate)) * (x @ mlp.W_in + mlp.b_in)
    else:
        pre = x @ mlp.W_in + mlp.b_in
        gate = jax.lax.stop_gradient(jnp.where(pre == 0, 0, mlp.act(pre) / jnp.where(pre == 0, 1, pre)))
        # The rest is a constant: nothing, but where an activation function is not 0 at 0.
        post = gate * pre + jax.lax.stop_gradient(mlp.act(pre) - gate * pre)
    out = post @ mlp.W_out + mlp.b_out
    return out if block.ln2_post is None else block.ln2_post(out, tap)


def _final(ends: Transformer, mask: None, resid: Resid) -> Resid:
    """Makes what the unembedding reads of the last residual stream."""
    tap = _held_tap(layer=None)
    return resid if ends.ln_final is None else ends.ln_final(resid, tap)
