"""OpenAI's GPT-2 autoencoders: `…/gpt2-small/{location}{version}/autoencoders/{layer}.pt`.

`acts = activation((n(x) - pre_bias) W_enc + latent_bias)`, `x ≈ n^-1(acts W_dec + pre_bias)`; `n` standardises, and is there only if the
activation is TopK. Reference: Gao et al. 2024, arXiv 2406.04093; github.com/openai/sparse_autoencoder.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..._sites import Kind, Site
from ...saes import AbstractActivation, Linear, ReLU, SAE, Standardise, TopK
from ._reader import Reader
from ._source import Source
from ._tensors import checked, Table


TENSORS: Table = {
    "pre_bias": "d_in",
    "encoder.weight": "d_sae d_in",
    "latent_bias": "d_sae",
    "decoder.weight": "d_in d_sae",
    "decoder.linear.weight": "d_sae d_in",
    "stats_last_nonzero": "d_sae",
    "latents_activation_frequency": "d_sae",
    "latents_mean_square": "d_sae",
}
_OPTIONAL = tuple(TENSORS)[3:]
_SETTINGS = ("activation", "activation_state_dict")
_KINDS = {
    "mlp_post_act": Kind.MLP_POST,
    "resid_delta_attn": Kind.ATTN_OUT,
    "resid_post_attn": Kind.RESID_MID,
    "resid_delta_mlp": Kind.MLP_OUT,
    "resid_post_mlp": Kind.RESID_POST,
}
_PATH = re.compile(rf"({'|'.join(_KINDS)})(_v\d+\w*)?/autoencoders/(\d+)\.\w+$")
_DEAD = 1e-8  # a latent that is on more rarely is dead


def read(source: Source, *, omit_dead: bool = False, activation: str | None = None, k: int | None = None) -> SAE:
    """Reads an autoencoder from `{layer}.pt`.

    **Arguments:** - `omit_dead`: leave out the latents that were on less than once in 1e8 tokens; the others' numbers change.
    - `activation` (`"ReLU"`, `"Identity"`, `"TopK"`), `k`: for a file of tensors only, which cannot say them.
    """
    settings = {name: source.state[name] for name in _SETTINGS if name in source.state}
    state = {name: value for name, value in source.state.items() if name not in _SETTINGS}
    tensors, _ = checked(state, TENSORS, source, optional=_OPTIONAL)
    name, chosen = _activation(settings, activation, k, source)
    alive = _alive(tensors, source) if omit_dead else slice(None)
    W_enc = tensors["encoder.weight"].T
    W_dec = _decoder(tensors, source)
    return SAE(
        **source.leaves(W_enc[:, alive], tensors["latent_bias"][alive], W_dec[alive], tensors["pre_bias"]),
        activation=source.activation(chosen),
        site=source.site or site_of(source.path),
        processing=(),  # trained on OpenAI's own GPT-2, as it was released
        normalisation=Standardise() if name == "TopK" else None,
        origin=f"{source.name} (OpenAI {name}{', omit_dead=True' if omit_dead else ''})",
    )


def site_of(path: Path) -> Site | None:
    """Finds the site that a published path names, `gpt2-small/resid_post_mlp_v5_32k/autoencoders/6.pt`; `None` for another path."""
    match = _PATH.search(path.as_posix())
    return None if match is None else Site(int(match[3]), _KINDS[match[1]])


def _activation(
    settings: Mapping[str, object], given: str | None, k: int | None, source: Source
) -> tuple[str, AbstractActivation]:
    name = given or str(settings.get("activation", "ReLU" if k is None else "TopK"))
    inner = settings.get("activation_state_dict") or {}
    if name == "ReLU":
        return name, ReLU()
    if name == "Identity":
        return name, Linear()
    if name != "TopK" or not isinstance(inner, Mapping):
        raise ValueError(f"{source.name}: activation {name!r} is not supported. Supported are ReLU, Identity and TopK.")
    stored, after = inner.get("k"), str(inner.get("postact_fn", "ReLU"))
    if k is not None and stored is not None and int(np.asarray(stored)) != k:
        raise ValueError(f"{source.name}: k={k} was asked for, and the file says {stored}.")
    if stored is None and k is None:
        raise ValueError(f"{source.name}: a TopK autoencoder that does not say its k. Pass k=….")
    if after not in ("ReLU", "Identity"):
        raise ValueError(f"{source.name}: postact_fn {after!r} is not supported. Supported are ReLU and Identity.")
    return name, TopK(int(np.asarray(stored if k is None else k)), rectified=after == "ReLU")


def _decoder(tensors: Mapping[str, np.ndarray], source: Source) -> np.ndarray:
    if "decoder.weight" in tensors:
        return tensors["decoder.weight"].T
    tied = tensors.get("decoder.linear.weight", tensors["encoder.weight"])
    if not np.array_equal(tied, tensors["encoder.weight"]):
        raise ValueError(f"{source.name}: its decoder is tied to its encoder, and the two tensors differ.")
    return tied


def _alive(tensors: Mapping[str, np.ndarray], source: Source) -> np.ndarray:
    if "latents_activation_frequency" not in tensors:
        raise ValueError(f"{source.name} holds no `latents_activation_frequency`, which omit_dead=True goes by.")
    alive = tensors["latents_activation_frequency"] >= _DEAD
    if not alive.any():
        raise ValueError(f"{source.name}: every latent is dead. Load it with omit_dead=False.")
    return alive


READERS = (Reader("openai", read, lambda source: {"pre_bias", "latent_bias", "encoder.weight"} <= set(source.state)),)
