"""The programs of hot paths at the sizes of GPT-2 small, with dictionaries of 24,576 latents: shapes alone, nothing is computed."""

import functools as ft

import jax
import jax.numpy as jnp

from jaxcirc import Kind, Site
from jaxcirc.attribution._states import error_differences
from jaxcirc.linear import (
    between_blocks,
    block_matrix,
    chunk_for,
    contract_batch,
    contract_own,
    pull_batch,
    pull_rows,
    spread_batch,
)
from jaxcirc.linear._chain import chunk_of_rows, pull_block
from jaxcirc.linear._chain_contract import meet, through, tile_width
from jaxcirc.linear._contract import contract_laid_out, lay_out, sizes_for
from jaxcirc.linear._sweep import contract_segments
from jaxcirc.linear._tiles import tile
from jaxcirc.runs import allowance
from jaxcirc.units import Latents, write_tiles

from .dictionaries import make_sae
from .helpers import make_model


PRE = Site(0, Kind.RESID_PRE)
D, HEADS, D_HEAD, D_MLP, D_SAE = 768, 12, 64, 3072, 24_576
FEW = 16  # rounds, each of whatever size


def f32(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i32(*shape: int):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def resized(tree, sizes: dict[int, int]):
    """The same in single precision, with other sizes."""
    return jax.tree.map(lambda x: f32(*(sizes.get(n, n) for n in x.shape)), tree)


@ft.cache
def blocks():
    small = make_model(jax.random.key(0), layers=3, d_model=17, heads=HEADS, d_head=19, d_mlp=23, vocab=2, n_ctx=2)
    return resized(small.blocks, {17: D, 19: D_HEAD, 23: D_MLP})


def segment(seq: int, layers: int = 1):
    masks = (jax.ShapeDtypeStruct((seq, seq), bool),) * layers
    return between_blocks(blocks()[:layers], masks, f32(seq, D), PRE, Site(layers - 1, Kind.RESID_POST), ())


def contraction(m: int, k: int, seq: int):
    one, sizes = segment(seq), sizes_for(segment(seq), m, k, allowance())
    layout = jax.eval_shape(lambda left, right: lay_out(one, left, right, sizes), i32(m), i32(k))
    if layout is not None:
        assert layout.columns.position.shape[0] <= FEW * sizes.tiles  # how often loops over tiles may go round
        assert sizes.near == sizes.tiles
    items = f32(m, D), i32(m), f32(k, D), i32(k)
    return jax.make_jaxpr(ft.partial(contract_laid_out, sizes=sizes))(one, layout, *items)


def edges_of_prompts(m: int, k: int, seq: int, batch: int = 16):
    masks = (jax.ShapeDtypeStruct((batch, seq, seq), bool),)
    items = f32(batch, m, D), i32(batch, m), f32(batch, k, D), i32(batch, k)
    return jax.make_jaxpr(contract_batch)(segment(seq), masks, f32(batch, seq, D), None, *items)


def edges_of_prompts_through_a_block(m: int, seq: int, batch: int = 16):
    masks = (jax.ShapeDtypeStruct((batch, seq, seq), bool),)
    return jax.make_jaxpr(pull_batch)(segment(seq), masks, f32(batch, seq, D), None, f32(batch, m, seq, D))


def edges_of_prompts_spread(m: int, seq: int, batch: int = 16):
    masks = (jax.ShapeDtypeStruct((batch, seq, seq), bool),)
    items = f32(batch, m, D), i32(batch, m)
    return jax.make_jaxpr(spread_batch)(segment(seq), masks, f32(batch, seq, D), *items)


def matrix(seq: int):
    return jax.make_jaxpr(ft.partial(block_matrix, budget=allowance()))(segment(seq), i32(seq), i32(seq))


def matrix_in_steps(seq: int):
    pull = ft.partial(pull_block, count=seq, reached=seq)
    return jax.make_jaxpr(pull)(segment(seq), f32(seq, D, seq, D), f32(seq, D, D), 0)


def rows_through_a_block(n: int, window: int):
    pulled = ft.partial(through, forward=False, chunk=chunk_of_rows(segment(window), n, window, allowance()))
    return jax.make_jaxpr(pulled)(segment(window), None, f32(n, window, D), 0)


def rows_meet_columns(n: int, k: int, window: int):
    tiles = jax.eval_shape(lambda at: tile(at, window, tile_width(k, window), 1), i32(k))
    return jax.make_jaxpr(ft.partial(meet, together=window))(f32(n, k), i32(n), f32(n, window, D), f32(k, D), tiles, 0)


def pairs_at_one_position(n: int, tiles: int):
    own = ft.partial(contract_own, forward=True)
    return jax.make_jaxpr(own)((segment(64),), f32(n, D), i32(n), f32(n, D), i32(n), i32(tiles, 2))


def lens(n: int, window: int):
    return jax.make_jaxpr(ft.partial(pull_rows, first=0))(segment(window), f32(window, n, D))


def nodes_written(seq: int, batch: int = 16, on: int = 60):
    sae = resized(make_sae(jax.random.key(0), 17, Site(0, Kind.MLP_OUT)), {17: D, 20: D_SAE})
    latents = Latents(i32(batch, seq * on), i32(batch, seq * on), f32(batch, seq * on))
    written = ft.partial(error_differences, tiles=write_tiles())
    return jax.make_jaxpr(written)(sae, f32(batch, seq, D), f32(batch, seq, D), latents)


def sweeps(m: int, k: int, seq: int):
    several = segment(seq, layers=3)
    sweep = ft.partial(contract_segments, chunk=min(m, chunk_for([several], allowance())), forward=False)
    return jax.make_jaxpr(sweep)((several,), f32(m, D), i32(m), f32(k, D), i32(k))


AT_FULL_SIZE = {
    "edges, few rows": lambda: contraction(8, 4096, 64),
    "edges, some rows": lambda: contraction(128, 24_576, 64),
    "edges, many rows": lambda: contraction(2048, 24_576, 64),
    "edges, a long prompt": lambda: contraction(512, 8192, 1024),
    "edges of 16 prompts, 32 rows": lambda: edges_of_prompts(32, 4096, 64),
    "edges of 16 prompts, 512 rows": lambda: edges_of_prompts(512, 4096, 64),
    "edges of 16 prompts, on their way back": lambda: edges_of_prompts_through_a_block(512, 64),
    "edges of 16 prompts, spread over positions": lambda: edges_of_prompts_spread(512, 64),
    "as_matrix": lambda: matrix(64),
    "as_matrix, a long prompt": lambda: matrix(256),
    "as_matrix in steps": lambda: matrix_in_steps(64),
    "contract in steps": lambda: rows_through_a_block(4096, 64),
    "contract in steps, a long prompt": lambda: rows_through_a_block(128, 1024),
    "contract in steps, where rows meet columns": lambda: rows_meet_columns(128, 24_576, 64),
    "contract by sweeps": lambda: sweeps(512, 4096, 64),
    "feature_jacobian at one position": lambda: pairs_at_one_position(4096, 4096),
    "fit_lens": lambda: lens(768, 128),
    "fit_lens, numbers without divisors": lambda: lens(761, 127),
    "fit_lens, a long prompt": lambda: lens(768, 1000),
    "node effects": lambda: nodes_written(64),
    "node effects, a long prompt": lambda: nodes_written(1024),
}
