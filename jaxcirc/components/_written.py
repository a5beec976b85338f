"""A batch run block by block, with what every component writes to the residual stream.

Block by block, and not in one program, so that blocks share one, and nothing is unembedded.
"""

from collections.abc import Iterable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._sites import Kind, Site
from .._tap import bare_tap, Tap
from ..models import Transformer
from ..parts import Block, LayerNorm


class Written(eqx.Module):
    """What the components of a block write.

    **Attributes:**

    - `resid_pre` `[batch seq d_model]`: what enters the block.
    - `z` `[batch seq head d_head]`: the heads' outputs, before `W_O`.
    - `mlp_out` `[batch seq d_model]`: `None` in a model of attention only.
    - `entered` `[batch seq d_model]`: the residual stream that the heads' outputs enter: `resid_mid`, or in a block without a middle
      `resid_post`.
    """

    resid_pre: Float[Array, "batch seq d_model"]
    z: Float[Array, "batch seq head d_head"]
    mlp_out: Float[Array, "batch seq d_model"] | None
    entered: Float[Array, "batch seq d_model"]


class Run(eqx.Module):
    """A batch, run.

    **Attributes:** - `layers`: of each block what is written. - `masks`: of each layer, `[batch q_seq k_seq]`. - `last`
    `[batch seq d_model]`: the last residual stream. - `scale` `[batch seq]`: of the final norm, 1 if there is none.
    """

    layers: tuple[Written, ...]
    masks: tuple[Bool[Array, "batch q_seq k_seq"], ...]
    last: Float[Array, "batch seq d_model"]
    scale: Float[Array, "batch seq"]


def run_blocks(
    model: Transformer, tokens: Int[Array | np.ndarray, "batch seq"], mask: Bool[Array | np.ndarray, "batch seq"]
) -> Run:
    """Runs a batch up to the unembedding."""
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    resid, layers = _embedded(model.ends, tokens, mask), []
    masks = model.batch_masks(mask)
    for block, allowed in zip(model.blocks, masks, strict=True):
        resid, written = _through(block, allowed, resid)
        layers.append(written)
    return Run(tuple(layers), masks, resid, final_scale(model.ln_final, resid))


@jax.jit
def _embedded(model: Transformer, tokens, mask) -> Float[Array, "batch seq d_model"]:
    return jax.vmap(lambda tokens, keys: model.embed(tokens, bare_tap(), keys))(tokens, mask)


@jax.jit
def _through(block: Block, mask, resid) -> tuple[Float[Array, "batch seq d_model"], Written]:
    def one(mask, resid):
        tap = recording((Kind.Z, Kind.MLP_OUT, Kind.RESID_MID))
        return block(resid, mask, tap), recorded(tap)

    after, found = jax.vmap(one)(mask, resid)
    return after, Written(resid, found[Kind.Z], found.get(Kind.MLP_OUT), found.get(Kind.RESID_MID, after))


@jax.jit
def final_scale(ln_final: LayerNorm | None, resid: Float[Array, "*batch seq d_model"]) -> Float[Array, "*batch seq"]:
    """By what the final norm divides."""
    if ln_final is None:
        return jnp.ones_like(resid[..., 0])
    site = Site(None, Kind.FINAL_SCALE)

    def one(resid):
        tap = Tap({}, {}, {site})
        ln_final(resid, tap)
        return tap.cache[site][..., 0]

    return jax.vmap(one)(resid.reshape(-1, *resid.shape[-2:])).reshape(resid.shape[:-1])


def recording(kinds: Iterable[Kind]) -> Tap:
    """A tap that records these in any block, for programs that all blocks share."""
    return Tap({}, {}, frozenset(Site(0, kind) for kind in kinds), layer=0)


def recorded(tap: Tap) -> dict[Kind, Float[Array, "..."]]:
    """What it recorded."""
    return {site.kind: value for site, value in tap.cache.items()}
