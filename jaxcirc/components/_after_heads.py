"""What happens after a head's output is replaced: every head of a layer at once, from that layer on.

What a head of a layer writes reaches the residual stream after all of that layer's heads have read it. So a run with one head replaced is
the clean run up to there, and goes on from that cut.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._precision import wide
from .._sites import Kind, Site
from ..graph import Entry, entry
from ..models import Transformer
from ..parts import Block, Norm
from ..runs import apart, in_groups, onwards, record, tokens_together
from ._direct_effects import along_direction
from ._reading import Asked, at_scale, before_norm_behind, reading
from ._written import final_scale


class Changes(NamedTuple):
    """Of runs with one head replaced, `[batch head seq]`: the head's `direct` effect on the clean run, and how what the logit is made of
    changes. `own`: what the head writes; `backup`: attention of later layers; `mlps`; `norm`: what other scales of the norms do that the
    head's output passes, of the final one and of one behind attention in its layer; `change`: the logit.
    """

    direct: np.ndarray
    own: np.ndarray
    backup: np.ndarray
    mlps: np.ndarray
    norm: np.ndarray
    change: np.ndarray


class Pairs(NamedTuple):
    """Prompts `[batch seq]` and their mask, the others to resample from and theirs, and whose logits are read."""

    tokens: np.ndarray
    mask: np.ndarray
    resample: np.ndarray
    resample_mask: np.ndarray
    wanted: Asked


def iterate_changes(
    model: Transformer, given: Pairs, heads: list[Int[np.ndarray, " _"]], tokens_at_once: int
) -> Iterator[tuple[int, Changes]]:
    """For each layer the changes when each of its `heads[layer]` by itself has the `z` of the other prompts, at every position."""
    layers = range(model.n_layers)
    of_all = lambda *kinds: {Site(layer, kind) for layer in layers for kind in kinds}
    block, z = model.blocks[0], sorted(of_all(Kind.Z))
    of_layer = (Kind.Z, *(() if block.ln1_post is None else (Kind.HEADS_OUT, Kind.LN1_POST_SCALE)))
    writes, cuts = of_all(*WRITES[: 1 if block.mlp is None else 2]), [entry(model, site) for site in z]
    tokens, mask = np.concatenate([given.tokens, given.resample]), np.concatenate([given.mask, given.resample_mask])
    clean, other = apart(record(model, tokens, mask, {*writes, *of_all(cuts[0].kind, *of_layer)}))
    read, scale = reading(model, given.wanted), final_scale(model.ln_final, clean.last)
    along = at_scale(read, scale)
    batch, seq = given.tokens.shape
    together = tokens_together(model, seq, tokens_at_once)
    for layer, mine in enumerate(heads):
        cut, found = cuts[layer], []
        of_clean = {kind: clean.values[Site(layer, kind)] for kind in of_layer}
        for some in in_groups(len(mine) * batch, seq, together) if len(mine) else ():
            which, rows = np.divmod(some, batch)
            given_there = model.blocks[layer], clean.at_cut(cut), of_clean, other.values[z[layer]], along
            resid, *itself, behind = _replaced(*given_there, rows, mine[which])
            changes = [jnp.zeros_like(resid[..., 0])] * 2
            for later, after, values in onwards(model, clean.masks, cut, rows, resid, record=writes):
                resid = after
                changes = _changed(changes, clean.in_layer(later), values, along, rows)
            end = _at_end(model.ln_final, read.direction, clean.last, scale, resid, rows, behind)
            found.append((*itself, *changes, *end))
        if found:
            variants = [np.concatenate(parts)[: len(mine) * batch] for parts in zip(*found, strict=True)]
            yield layer, Changes(*(x.reshape(len(mine), batch, seq).swapaxes(0, 1) for x in variants))


WRITES = (Kind.ATTN_OUT, Kind.MLP_OUT)


@jax.jit
def _replaced(
    block: Block, entered, clean: dict[Kind, Array], other, along, rows, heads
) -> tuple[Array, Array, Array, Array | None]:
    """Puts heads' `z` of `other` `[batch seq head d_head]` in place, in each variant that of one head; `clean` is what was recorded in the
    block.

    **Returns:** the residual stream that they enter, `[variant seq d_model]`; the heads' direct effects, and how these change; and what
    the other scale of a norm behind attention does, all three `[variant seq]`, the last `None` if there is none.
    """
    of_sum, _ = before_norm_behind(block.ln1_post, clean.get(Kind.LN1_POST_SCALE), along)

    def one(row, head):
        # Slices, as a gather would copy what is gathered from.
        W_O = wide(block.attn.W_O[head])
        z = clean[Kind.Z][row, :, head]
        moved = other[row, :, head] - z
        # [seq d_model] · [d_head d_model] -> [seq d_head]
        wanted = of_sum[row] @ W_O.T
        direct, own = along_direction(z, wanted), along_direction(moved, wanted)
        change, behind = moved @ W_O, None
        if block.ln1_post is not None:
            change = Entry(change, clean[Kind.HEADS_OUT][row], block.ln1_post).at(1)
            behind = along_direction(change, along[row]) - own
        return entered[row] + change, direct, own, behind

    return jax.vmap(one)(rows, heads)


@jax.jit
def _changed(
    so_far: list[Array], clean: dict[Kind, Array], now: dict[Site, Array], along, rows
) -> list[Float[Array, "variant seq"]]:
    """Adds by how much the direct effects of a layer's attention and of its MLP change, as far as they are run."""
    more = {site.kind: along_direction(value - clean[site.kind][rows], along[rows]) for site, value in now.items()}
    return [before + more.get(kind, 0) for kind, before in zip(WRITES, so_far, strict=True)]


@jax.jit
def _at_end(ln_final: Norm | None, direction, clean, scale, resid, rows, behind) -> tuple[Array, Array]:
    """The part of the logit's change `[variant seq]` that norms' other scales make, with `behind`, that of one behind attention; and all of
    the change.
    """
    direction, clean, scale = (x[rows] for x in (direction, clean, scale))
    after, before = along_direction(resid, direction), along_direction(clean, direction)
    other = final_scale(ln_final, resid)
    of_norms = after * (1 / other - 1 / scale)
    return of_norms if behind is None else of_norms + behind, after / other - before / scale
