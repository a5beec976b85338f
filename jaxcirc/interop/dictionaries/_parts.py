"""A dictionary's arrays under our names, and the rescalings that leave its reconstruction as it is.

`W_enc [d_in d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae d_out]`, `b_dec [d_out]`, and what its activation has: `threshold`, or `r_mag`,
`b_gate`, `b_mag`, all `[d_sae]`.
"""

from collections.abc import Mapping

import numpy as np


Parts = Mapping[str, np.ndarray]
_LATENT_UNITS = ("b_enc", "b_gate", "b_mag", "threshold")  # in the units of the latents, as W_enc is; r_mag has none


def decoder_norms(parts: Parts) -> np.ndarray:
    """Takes the norm of each latent's direction, `[d_sae]`."""
    return np.linalg.norm(parts["W_dec"].astype(np.float64), axis=1)


def scale_latents(parts: Parts, factor: np.ndarray) -> dict[str, np.ndarray]:
    """Each latent times its `factor`, its direction divided by it. A latent whose factor is 0 stays off."""
    divisor = np.where(factor == 0, 1, factor)
    scaled = {name: _as(parts[name] * factor, parts[name]) for name in ("W_enc", *_LATENT_UNITS) if name in parts}
    return {**parts, **scaled, "W_dec": _as(parts["W_dec"] / divisor[:, None], parts["W_dec"])}


def unit_decoder(parts: Parts) -> dict[str, np.ndarray]:
    """Every direction of norm 1; one of norm 0 is left."""
    norms = decoder_norms(parts)
    return scale_latents(parts, np.where(norms == 0, 1, norms))


def scale_input(parts: Parts, factor: float) -> dict[str, np.ndarray]:
    """What was trained on `factor * x`, for `x`: the same latents, and the reconstruction divided by `factor`."""
    out = {"W_enc": parts["W_enc"] * factor, "W_dec": parts["W_dec"] / factor, "b_dec": parts["b_dec"] / factor}
    return {**parts, **{name: _as(array, parts[name]) for name, array in out.items()}}


def scale_biases(parts: Parts, factor: float) -> dict[str, np.ndarray]:
    """What was trained on `x / factor`, for `x`: latents and reconstruction times `factor`. A negative threshold means unset: it stays."""
    out = {name: parts[name] * factor for name in ("b_enc", "b_dec", "b_gate", "b_mag") if name in parts}
    if "threshold" in parts:
        out["threshold"] = np.where(parts["threshold"] > 0, parts["threshold"] * factor, parts["threshold"])
    return {**parts, **{name: _as(array, parts[name]) for name, array in out.items()}}


def _as(array: np.ndarray, like: np.ndarray) -> np.ndarray:
    return array.astype(like.dtype, copy=False)
