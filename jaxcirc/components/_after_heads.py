"""What happens after a head's output is replaced: every head of a layer at once, from that layer on.

What a head of a layer writes reaches the residual stream after all of that layer's heads have read it. So a run with one head replaced is
the clean run up to there; many heads' runs go on together as one batch, through programs that all layers share.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._precision import wide
from .._sites import Kind
from ..models import Transformer
from ..parts import Block, LayerNorm
from ._direct_effects import along_direction, of_heads
from ._groups import in_groups
from ._reading import Asked, at_scale, reading
from ._written import final_scale, recorded, recording, run_blocks


class Changes(NamedTuple):
    """Of runs with one head replaced, `[batch head seq]`: the head's `direct` effect on the clean run, and how what the logit is made of
    changes. `own`: what the head writes; `backup`: the heads of later layers; `mlps`; `norm`: what the final norm's other scale does;
    `change`: the logit.
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


class _Runs(NamedTuple):
    """Runs with one head replaced, on their way: the residual stream `[head batch seq d_model]`, and the changes of direct effects so
    far, `[head batch seq]`.
    """

    resid: Array
    backup: Array
    mlps: Array


def iterate_changes(
    model: Transformer, given: Pairs, heads: list[Int[np.ndarray, " _"]], tokens_at_once: int
) -> Iterator[tuple[int, Changes]]:
    """For each layer the changes when each of its `heads[layer]` by itself has the `z` of the other prompts, at every position."""
    other = [written.z for written in run_blocks(model, given.resample, given.resample_mask).layers]
    clean = run_blocks(model, given.tokens, given.mask)
    read = reading(model, given.wanted)
    along = at_scale(read, clean.scale)
    attn = [_of_attention(block, written, along) for block, written in zip(model.blocks, clean.layers, strict=True)]
    for layer, mine in enumerate(heads):
        written, found = clean.layers[layer], []
        for rows in in_groups(len(mine), given.tokens.size, tokens_at_once) if len(mine) else ():
            some = jnp.asarray(mine[rows])
            runs, *themselves = _replaced(model.blocks[layer], written, other[layer], along, some)
            for later in range(layer + 1, model.n_layers):
                at = clean.masks[later], attn[later], clean.layers[later].mlp_out
                runs = _onwards(model.blocks[later], *at, along, runs)
            norm, change = _at_end(model.ln_final, read.direction, clean.last, clean.scale, runs.resid)
            found.append((*themselves, runs.backup, runs.mlps, norm, change))
        if found:
            yield (
                layer,
                Changes(*(np.concatenate(parts)[: len(mine)].swapaxes(0, 1) for parts in zip(*found, strict=True))),
            )


@jax.jit
def _of_attention(block: Block, written, along) -> Float[Array, "batch seq"]:
    return of_heads(block.attn, written.z, along).sum(1) + along @ wide(block.attn.b_O)


@jax.jit
def _replaced(block: Block, written, other, along, heads) -> tuple[_Runs, Array, Array]:
    """To the end of the heads' own layer; and the heads' direct effects, and how these change."""
    change = (other - written.z)[:, :, heads]
    # [batch seq head d_head] · [head d_head d_model] -> [head batch seq d_model]
    resid = written.entered + jnp.einsum("bshd,hdm->hbsm", change, wide(block.attn.W_O[heads]))
    direct, own = (jnp.swapaxes(of_heads(block.attn, z, along), 0, 1)[heads] for z in (written.z, other - written.z))
    nothing = jnp.zeros_like(direct)
    if not block.has_middle:  # what the heads enter is already the end: an MLP beside them does not read them
        return _Runs(resid, nothing, nothing), direct, own

    def one(resid):
        tap = recording([Kind.MLP_OUT])
        return block.feed(resid, tap), recorded(tap)[Kind.MLP_OUT]

    after, out = jax.vmap(jax.vmap(one))(resid)
    return _Runs(after, nothing, along_direction(out - written.mlp_out, along)), direct, own


@jax.jit
def _onwards(block: Block, mask, attn, mlp_out, along, runs: _Runs) -> _Runs:
    """Through a later layer, whose attention's direct effect and whose MLP's output on the clean run are given."""

    def one(resid, mask):
        tap = recording([Kind.ATTN_OUT, Kind.MLP_OUT])
        return block(resid, mask, tap), recorded(tap)

    after, found = jax.vmap(jax.vmap(one), (0, None))(runs.resid, mask)
    backup = runs.backup + along_direction(found[Kind.ATTN_OUT], along) - attn
    if block.mlp is None:
        return _Runs(after, backup, runs.mlps)
    return _Runs(after, backup, runs.mlps + along_direction(found[Kind.MLP_OUT] - mlp_out, along))


@jax.jit
def _at_end(ln_final: LayerNorm | None, direction, clean, scale, resid) -> tuple[Array, Array]:
    """The part of the logit's change that the norm's other scale makes, and all of it."""
    after, before = along_direction(resid, direction), along_direction(clean, direction)
    other = final_scale(ln_final, resid)
    return after * (1 / other - 1 / scale), after / other - before / scale
