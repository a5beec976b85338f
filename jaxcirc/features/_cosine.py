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
from ..parts import Block, LayerNorm
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
    reading, norm = _read(blocks[0], kinds[0], wide(saes.target.W_enc[:, targets]).T)
    writing = _written(blocks[1], kinds[1], wide(saes.source.W_dec[sources]))
    if writing is None:
        return None
    if norm is not None:
        # A norm subtracts the mean, so that in what is read through one it counts for nothing.
        reading = reading if norm.weight is None else reading * norm.weight
        reading, writing = (each - jnp.mean(each, axis=-1, keepdims=True) for each in (reading, writing))
    return _unit(reading), _unit(writing)


def _written(block: Block | None, kind: Kind, directions: Float[Array, "k width"]) -> Array | None:
    """What directions of a site add to the residual stream."""
    if kind in _RESIDUAL:
        return directions
    if block is not None and kind == Kind.MLP_POST and block.mlp is not None:
        return directions @ block.mlp.W_out
    if block is not None and kind == Kind.Z:
        return directions @ block.attn.W_O.reshape(-1, block.attn.W_O.shape[-1])
    return None


def _read(block: Block | None, kind: Kind, directions: Float[Array, "m width"]) -> tuple[Array, LayerNorm | None]:
    """What directions of a site are in the residual stream, or behind the norm through which it is read, and that norm."""
    if kind in _RESIDUAL or block is None:
        return directions, None
    if kind in (Kind.MLP_PRE, Kind.MLP_POST) and block.mlp is not None:
        return directions @ block.mlp.W_in.T, block.ln2
    if kind == Kind.LN2_NORMALIZED:
        return directions, block.ln2
    if kind == Kind.LN1_NORMALIZED:
        return directions, block.ln1
    attn = block.attn
    W = {Kind.Q: attn.W_Q, Kind.K: attn.W_K, Kind.V: attn.W_V, Kind.Z: attn.W_V}[kind]
    # [n head d_head] · [head d_model d_head] -> [n d_model]
    return jnp.einsum("nhe,hme->nm", directions.reshape(-1, *W.shape[::2]), W), block.ln1


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
