"""Clusters of residual streams, each of which a lens may have its own mean for."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..models import Transformer
from ._sweep import enter, prepare


SAMPLE = 20_000  # positions that the centres are found from


def find_centres(
    model: Transformer, prompts: Iterable[Int[np.ndarray, " _"]], layers: range, *, clusters: int, skip_first: int
) -> dict[int, Float[np.ndarray, "cluster d_model"]]:
    """Finds for each source layer the centres of clusters of its residual stream at valid positions, by k-means with a fixed seed.

    **Raises:** `ValueError` for more clusters than positions.
    """
    from scipy.cluster.vq import kmeans2

    found: dict[int, list[np.ndarray]] = {layer: [] for layer in layers}
    count = 0
    for tokens in prompts:
        prompt = prepare(model, tokens, skip_first)
        entering = enter(model, prompt, range(layers.start + 1, layers.stop + 1))
        for layer in layers:
            found[layer].append(np.asarray(entering.resid[layer + 1])[prompt.valid])
        count += int(prompt.valid.sum())
        if count >= SAMPLE:
            break
    if count < clusters:
        raise ValueError(
            f"fit_lens: {clusters} clusters of {count} positions. Give more prompts, or ask for fewer clusters."
        )
    centres = {}
    for layer, parts in found.items():
        resid = np.concatenate(parts)
        begin = resid[np.random.default_rng(0).choice(len(resid), clusters, replace=False)]
        centres[layer], _ = kmeans2(resid, begin, minit="matrix")
    return centres


@jax.jit
def nearest_centre(resid: Float[Array, "seq d_model"], centres: Float[Array, "cluster d_model"]) -> Int[Array, " seq"]:
    """Finds which centre is nearest to each position."""
    # The square of a position is the same for all centres. [seq d_model] · [cluster d_model] -> [seq cluster]
    return jnp.argmin(jnp.sum(centres**2, axis=1) - 2 * resid @ centres.T, axis=1)
