r"""How alike the direction that a latent writes into the residual stream is to the one that another reads from it, by the weights alone.

It is the part of the derivative that is left when activation functions and norms' scales are taken for constants and nothing passes
through attention or another layer's MLP.
"""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._precision import wide, wide_dtype, widened
from .._sites import Kind
from ..models import Transformer
from ..parts import Block, GatedMLP, Norm
from ..parts._held_norm import centred, pull_through_norm, push_through_norm
from ..runs import size_for
from ._ends import Dictionaries, Ends
from ._latents import Latents, Pairs
from ._same import products_at_same


def cosines(
    model: Transformer, saes: Dictionaries, ends: Ends, targets: Latents, sources: Latents, pairs: Pairs, *, same: bool
) -> Float[np.ndarray, " pair"]:
    """The cosine of each pair, NaN where an end has no direction in the residual stream; `same` if pairs are at one position."""
    block = lambda site: None if site.layer is None else model.blocks[site.layer]
    found = _directions(
        (block(ends.target_read), block(ends.source)),
        saes,
        *(_padded(np.unique(latents.unit), saes) for latents in (targets, sources)),
        kinds=(ends.target_read.kind, ends.source.kind),
    )
    if found is None:
        return np.full(len(pairs.target), np.nan, wide_dtype(saes.source.W_dec.dtype))
    reading, writing = found
    targets, sources = _among_distinct(targets), _among_distinct(sources)
    if not same:
        return np.asarray(_products(reading, writing))[targets.unit[pairs.target], sources.unit[pairs.source]]
    left, right = (lambda position, unit, table=table: _rows(table, unit) for table in (reading, writing))
    return products_at_same(
        (), left, right, targets, sources, pairs, held=4 * reading.shape[1] * reading.dtype.itemsize
    )


def _among_distinct(latents: Latents) -> Latents:
    """The same with each unit's number among those that there are."""
    return Latents(latents.position, np.unique(latents.unit, return_inverse=True)[1].astype(np.int32))


def _padded(units: Int[np.ndarray, " n"], saes: Dictionaries) -> Int[Array, " size"]:
    size = size_for(len(units), "distinct latents", saes.source.W_dec.shape, saes.target.W_enc.shape)
    return jnp.asarray(np.pad(units, (0, size - len(units))))


_products = jax.jit(lambda reading, writing: reading @ writing.T)
_rows = jax.jit(lambda table, units: table[units])


@ft.partial(jax.jit, static_argnames="kinds")
def _directions(
    blocks: tuple[Block | None, Block | None],
    saes: Dictionaries,
    targets: Int[Array, " m"],
    sources: Int[Array, " k"],
    *,
    kinds: tuple[Kind, Kind],
) -> tuple[Float[Array, "m d_model"], Float[Array, "k d_model"]] | None:
    """Unit vectors in the residual stream: what targets read and what sources write."""
    blocks = widened(blocks)
    found = _read(blocks[0], kinds[0], wide(saes.target.W_enc[:, targets]).T)
    writing = _written(blocks[1], kinds[1], wide(saes.source.W_dec[sources]))
    if found is None or writing is None:
        return None
    reading, norm = found
    # What is read through a norm that subtracts the mean does not see it.
    return _unit(reading), _unit(writing if norm is None else centred(norm, writing))


def _written(block: Block | None, kind: Kind, directions: Float[Array, "k width"]) -> Array | None:
    """What directions of a site add to the residual stream."""
    if kind in _RESIDUAL:
        return directions
    if block is None:
        return None
    behind_attention = lambda x: x if block.ln1_post is None else push_through_norm(block.ln1_post, x)
    behind_mlp = lambda x: x if block.ln2_post is None else push_through_norm(block.ln2_post, x)
    if kind == Kind.MLP_POST and block.mlp is not None:
        return behind_mlp(directions @ block.mlp.W_out)
    if kind == Kind.NEURONS_OUT:
        return behind_mlp(directions)
    if kind == Kind.Z:
        return behind_attention(directions @ block.attn.W_O.reshape(-1, block.attn.W_O.shape[-1]))
    return behind_attention(directions) if kind == Kind.HEADS_OUT else None


def _read(block: Block | None, kind: Kind, directions: Float[Array, "m width"]) -> tuple[Array, Norm | None] | None:
    """What directions of a site are in the residual stream, and the norm through which it is read, if there is one."""
    if kind in (*_RESIDUAL, Kind.HEADS_OUT, Kind.NEURONS_OUT) or block is None:
        return directions, None
    attn, mlp = block.attn, block.mlp
    heads = {Kind.Q: attn.W_Q, Kind.K: attn.W_K, Kind.V: attn.W_V, Kind.Z: attn.W_V}
    norm = block.ln1 if kind <= Kind.Z else block.ln2
    if kind in heads:
        W = heads[kind]
        # [n head group d_head] · [head d_model d_head] -> [n d_model]: a group of z's heads reads the same values
        directions = jnp.einsum("njge,jme->nm", directions.reshape(len(directions), W.shape[0], -1, W.shape[2]), W)
    elif mlp is not None and kind in (Kind.MLP_PRE, Kind.MLP_PRE_LINEAR, Kind.MLP_POST):
        # A gated MLP's neurons are read by way of what the gates multiply.
        W = mlp.W_gate if kind == Kind.MLP_PRE and isinstance(mlp, GatedMLP) else mlp.W_in
        directions = directions @ W.T
    elif kind not in (Kind.LN1_NORMALIZED, Kind.ATTN_IN, Kind.LN2_NORMALIZED, Kind.MLP_IN):
        return None
    if norm is None:
        return directions, None
    before_weight = kind in (Kind.LN1_NORMALIZED, Kind.LN2_NORMALIZED)
    return (centred(norm, directions) if before_weight else pull_through_norm(norm, directions)[0]), norm


_RESIDUAL = (
    Kind.EMBED,
    Kind.POS_EMBED,
    Kind.RESID_PRE,
    Kind.ATTN_OUT,
    Kind.RESID_MID,
    Kind.MLP_OUT,
    Kind.RESID_POST,
)


def _unit(x: Float[Array, "n d_model"]) -> Float[Array, "n d_model"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
