"""The run at whose point latents are differentiated, and what they are there."""

import functools as ft
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._edits import Replace
from .._run import run
from .._sites import Kind, Site
from .._typing import Mask, Resid, Tokens
from ..models import Transformer
from ._ends import Dictionaries, Ends


class Point(NamedTuple):
    """What the derivative needs of the run.

    `masks` and `resids`: who attends to whom in each block, and what enters it. `displacement`: how far the source's value was moved,
    `None` where it was not replaced. `source_acts` and `source_scale`, by which its decoder is stretched. `target_acts`, their `slopes`, and
    what the target's dictionary `read`.
    """

    masks: tuple[Mask, ...]
    resids: tuple[Resid, ...]
    displacement: Float[Array, "seq ..."] | None
    source_acts: Float[Array, "seq d_sae"]
    source_scale: Float[Array, " seq"]
    target_acts: Float[Array, "seq d_sae_target"]
    slopes: Float[Array, "seq d_sae_target"]
    read: Float[Array, "seq d_read"]


@ft.partial(jax.jit, static_argnames="ends")
def run_at_point(model: Transformer, saes: Dictionaries, tokens: Tokens, *, ends: Ends) -> Point:
    """The run, with the source's reconstruction in place of its site where that is asked for."""
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)]
    wanted = {*cuts, ends.source, ends.source_read, ends.target_read}
    values = run(model, tokens, record=wanted)[1]
    before = values[ends.source]
    x = flat(values[ends.source_read])
    acts = saes.source.encode(x)
    displacement = None
    if ends.replaced:
        recon = saes.source.decode(acts, x).reshape(before.shape).astype(before.dtype)
        values, displacement = run(model, tokens, edits={ends.source: Replace(recon)}, record=wanted)[1], recon - before
    read = flat(values[ends.target_read])
    return Point(
        model.masks(len(tokens), None),
        tuple(values[site] for site in cuts),
        displacement,
        acts,
        saes.source.decoder_scale(x),
        saes.target.encode(read),
        saes.target.slopes(read),
        read,
    )


def flat(x: Float[Array, "seq ..."]) -> Float[Array, "seq width"]:
    """One vector a position: a dictionary on z reads all heads as one."""
    return jnp.reshape(x, (x.shape[0], -1))
