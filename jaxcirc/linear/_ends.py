"""What items at the ends of an edge stand for: vectors at the source's site, covectors at the target's.

An item is a vector in the coordinates of the end, or an integer, the unit vector of that coordinate. In a dictionary's coordinates a
unit vector is one latent, and becomes its decoder direction, or its encoder direction where the latent is on: the dictionary is folded
into the contraction, and an array of all latents by all latents never exists.
"""

import functools as ft
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._indexing import take
from .._precision import wide
from .._sites import Part, Site
from .._tap import site_read
from ..saes import AbstractDictionary
from ..units import covectors, vectors
from ._maps import Items, Positions
from ._segment import Segment


Fold = Callable[[Array, Positions], Items]


def source_vectors(segment: Segment) -> Fold:
    """From items in the source's coordinates to vectors at its site, flat."""
    source = segment.source
    if source.part not in (Part.ACTS, Part.INPUT):
        return _raw(segment, source.value)
    sae = segment.saes[source.value]
    read = site_read(source.value, sae)
    x = _flat(segment.record({read})[read])
    if source.part == Part.INPUT:
        return _decoded_input(segment, sae, x)
    scale = sae.decoder_scale(x)

    def decode(items, positions):
        here = take(scale, positions)
        return vectors(sae, items, here) if _are_units(items) else (items @ wide(sae.W_dec)) * here[:, None]

    return decode


def _decoded_input(segment: Segment, sae: AbstractDictionary, x: Float[Array, "seq d_in"]) -> Fold:
    """Pushes changes of the decoder's input `[n d_in]` through it, at the clean latents. Where the error is not held it takes back as
    much.
    """
    unfold, acts, live = _raw(segment, segment.source), sae.encode(x), segment.source.value.error not in segment.frozen

    def decode(items, positions):
        here, latents = take(x, positions), take(acts, positions)
        written = jax.jvp(lambda x: sae.decode(latents, x), (here,), (unfold(items, positions),))[1]
        return jnp.zeros_like(written) if live else written

    return decode


def target_covectors(segment: Segment) -> Fold:
    """From items in the target's coordinates to covectors at its site, flat; for what a transcoder makes of its input, where it reads."""
    target = segment.target
    if target.part in (Part.VALUE, Part.INPUT):
        return _raw(segment, target)
    sae = segment.saes[target.value]
    read = site_read(target.value, sae)
    x = _flat(segment.record({read})[read])
    if target.part == Part.ACTS:
        slopes = sae.slopes(x)

        def encode(items, positions):
            here = take(x, positions)
            if _are_units(items):
                return covectors(sae, here, items, slopes.at[positions, items].get(mode="promise_in_bounds"))
            return sae.pull_input(here, (items * take(slopes, positions)) @ wide(sae.W_enc).T)

        return encode
    unfold, held = _raw(segment, target.value), target.value.input in segment.frozen

    def error(items, positions):
        missed = lambda x, clean: x - sae.decode(sae.encode(x), clean if held else x)
        left = lambda clean, covector: jax.vjp(lambda x: missed(x, clean), clean)[1](covector)[0]
        # One item at a time needs d_sae numbers; a few at a time keep the matrix products busy.
        pairs = (take(x, positions), unfold(items, positions))
        return jax.lax.map(lambda pair: left(*pair), pairs, batch_size=min(64, len(positions)))

    return error


def _raw(segment: Segment, site) -> Fold:
    def unfold(items, positions):
        if _are_units(items):
            width = _width(segment, site)
            return jax.nn.one_hot(items, width, dtype=segment.resid.dtype)
        return items

    return unfold


def _width(segment: Segment, site) -> int:
    shape = _value_at.eval_shape(segment, site).shape
    return int(shape[-1] if len(shape) == 2 else shape[-1] * shape[-2])


@ft.partial(
    jax.jit, static_argnums=1
)  # never run: so that a segment is traced once, however often the width of a site is asked for
def _value_at(segment: Segment, site: Site) -> Float[Array, "seq ..."]:
    return segment.record({site})[site]


def _flat(x: Float[Array, "seq ..."]) -> Float[Array, "seq width"]:
    return x.reshape(x.shape[0], -1)


def _are_units(items: Float[Array, "n width"] | Int[Array, " n"]) -> bool:
    return jnp.ndim(items) == 1
