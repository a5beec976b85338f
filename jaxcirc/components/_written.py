"""What every component writes to the residual stream in the clean run, and by what the final norm divides the sum."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._run import NOTHING
from .._sites import Kind, Site
from .._tap import Tap
from ..models import Transformer
from ..parts import Norm
from ..runs import record, Recorded


def written(
    model: Transformer, tokens: Int[Array | np.ndarray, "batch seq"], mask: Bool[Array | np.ndarray, "batch seq"]
) -> Recorded:
    """Runs a batch, of which nothing is unembedded, and records what enters each block, its heads' `z`, by what a norm behind attention
    divides, and the MLP's output.
    """
    places = []
    for layer, block in enumerate(model.blocks):
        there = {Kind.LN1_POST_SCALE: block.ln1_post, Kind.MLP_OUT: block.mlp}
        kinds = [Kind.RESID_PRE, Kind.Z, *(kind for kind, part in there.items() if part is not None)]
        places += [Site(layer, kind) for kind in kinds]
    return record(model, tokens, mask, places)


@jax.jit
def final_scale(ln_final: Norm | None, resid: Float[Array, "*batch seq d_model"]) -> Float[Array, "*batch seq"]:
    """Computes by what the final norm divides at each position; 1 if there is none."""
    if ln_final is None:
        return jnp.ones_like(resid[..., 0])
    site = Site(None, Kind.FINAL_SCALE)

    def one(resid):
        tap = Tap(NOTHING, NOTHING, {site})
        ln_final(resid, tap)
        return tap.cache[site][..., 0]

    return jax.vmap(one)(resid.reshape(-1, *resid.shape[-2:])).reshape(resid.shape[:-1])
