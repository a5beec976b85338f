r"""The linearised model of one prompt: what is written to its residual stream goes on linearly to whatever reads it.

Held at their clean values are every attention pattern, the scale of every norm (in front of sublayers and behind them, the final one), and
what every MLP adds, but for a linear path beside its dictionary. What is left is affine: attention moves values by its pattern, norms
subtract their mean and weigh, the residual stream adds up. So a vector $w$ that is written at one place changes what is read at another by
$J w$ with one matrix $J$, and nowhere does a path cross a nonlinearity (Ameisen et al. 2025, "Circuit Tracing", Transformer Circuits).

`pull` brings covectors of what is read back to everything that writes, `push` brings what is written forward to everything that reads; both
go layer by layer, for many at once, and over as many positions as the covectors or vectors have: in a causal model those up to the last
that is read. Axes: `n` covectors or vectors, each at the first `seq` positions of the prompt.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._precision import wide
from .._run import NOTHING
from .._sites import Kind, layer_of, Site
from .._tap import Tap
from .._typing import Mask, Resid, Tokens
from ..models import Transformer
from ..runs import record
from ._held_maps import (
    ATTENTION,
    BEFORE_ATTENTION,
    constant_of,
    final_norm,
    Given,
    OF_ATTENTION,
    OF_MLP,
    pull_back,
    push_on,
    values_in,
)


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
        return values_in(self.model.blocks[layer], self.masks[layer], self.resid[Site(layer, Kind.RESID_PRE)], kinds)

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
            passed = None if through is None else pull_back(ATTENTION, self._block(layer), through)
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
                made = push_on(ATTENTION, self._block(layer), moved)
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
        return pull_back(*self._reading(read), covectors)

    def push_read(self, read: Site, vectors: Float[Array, "n seq d_model"]) -> Many:
        """Pushes vectors at the cut of a read to what is read there."""
        if self.cut_of(read) == read:
            return vectors
        return push_on(*self._reading(read), vectors)

    def constant(self, read: Site) -> Float[Array, "seq width"]:
        """Computes what is read at a site if the residual stream before it is 0: biases of norms, of attention its constants."""
        if read.kind == Kind.ATTN_OUT:
            return constant_of(ATTENTION, self._block(layer_of(read)))
        if self.cut_of(read) == read:
            return jnp.zeros_like(self.resid[read])
        return constant_of(*self._reading(read))

    def _block(self, layer: int) -> "Given":
        return Given(self.model.blocks[layer], self.masks[layer], self.resid[Site(layer, Kind.RESID_PRE)])

    def _reading(self, read: Site) -> tuple[Callable[..., Array], "Given"]:
        """The function that makes a read of its cut, and what it is given."""
        clean = self.resid[self.cut_of(read)]
        if read == FINAL:
            return final_norm, Given(self.model.without_blocks, None, clean)
        layer = layer_of(read)
        given = Given(self.model.blocks[layer], self.masks[layer], clean)
        if read.kind in BEFORE_ATTENTION:
            return OF_ATTENTION[read.kind], given
        return OF_MLP[read.kind], given


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


@jax.jit
def _embeddings(ends: Transformer, tokens: Tokens) -> list[Resid]:
    tap = Tap(NOTHING, NOTHING, frozenset({Site(None, Kind.EMBED), Site(None, Kind.POS_EMBED)}))
    ends.embed(tokens, tap)
    return [tap.cache[site] for site in sorted(tap.cache)]
