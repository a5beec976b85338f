"""The run at whose point latents are differentiated, and what they are there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._edits import Replace
from .._sites import Kind, Site
from ..models import Transformer
from ..runs import filled, record, Recorded
from ..saes import AbstractDictionary
from ._ends import Dictionaries, Ends


class Point(NamedTuple):
    """What both ends' latents are in the run. It is apart from the run, so that programs know of no sites.

    `source_acts` and `source_scale`, by which its decoder is stretched. `target_acts`, their `slopes`, and what the target's dictionary
    `read`.
    """

    source_acts: Float[Array, "seq d_sae"]
    source_scale: Float[Array, " seq"]
    target_acts: Float[Array, "seq d_sae_target"]
    slopes: Float[Array, "seq d_sae_target"]
    read: Float[Array, "seq d_read"]


def run_at_point(
    model: Transformer, saes: Dictionaries, tokens: Int[np.ndarray, " seq"], *, ends: Ends
) -> tuple[Recorded, Float[Array, "padded ..."] | None, Point]:
    """Runs the prompt, with the source's reconstruction in place of its site where that is asked for, and padding behind it.

    **Returns:** the run of this one prompt; how far the source's value was moved, `None` where it was not replaced; and the latents.
    """
    wanted = {Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)}
    wanted |= {ends.source, ends.source_read, ends.target_read}
    prompts, mask = filled(tokens[None], np.ones((1, len(tokens)), bool), model.most_positions)
    displacement = None
    run = record(model, prompts, mask, wanted)
    acts, scale, recon = _written_there(saes.source, run.flat(ends.source_read)[0])
    if ends.replaced:
        before = run.values[ends.source]
        after = recon.reshape(before.shape).astype(before.dtype)
        run = record(model, prompts, mask, wanted, edits={ends.source: Replace(after)})
        displacement = (after - before)[0]
    read = run.flat(ends.target_read)[0]
    target_acts, slopes = _read_there(saes.target, read)
    return run, displacement, Point(acts, scale, target_acts, slopes, read)


@jax.jit
def _written_there(sae: AbstractDictionary, x: Float[Array, "seq d_in"]) -> tuple[Array, Array, Array]:
    """Computes the latents `[seq d_sae]`, the decoder's scale `[seq]` and the reconstruction `[seq width]`."""
    acts = sae.encode(x)
    return acts, sae.decoder_scale(x), sae.decode(acts, x)


@jax.jit
def _read_there(sae: AbstractDictionary, x: Float[Array, "seq d_in"]) -> tuple[Array, Array]:
    """Computes the latents and their slopes, `[seq d_sae]`."""
    return sae.encode(x), sae.slopes(x)


def flat(x: Float[Array, "seq ..."]) -> Float[Array, "seq width"]:
    """One vector a position: a dictionary on z reads all heads as one."""
    return jnp.reshape(x, (x.shape[0], -1))
