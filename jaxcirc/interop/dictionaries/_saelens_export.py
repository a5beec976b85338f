"""Dictionaries to SAELens' files, as its version 6 writes them."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from ..._files import writing_folder
from ..._sites import Kind
from ...saes import AbsTopK, AbstractDictionary, Gated, JumpReLU, ReLU, SAE, Standardise, TopK, Transcoder, UnitNorm
from ...saes._processing import STEPS


_VERSION = "6.0.0"  # of the layout; readers take a configuration without one for an older layout
_KWARGS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


def save_sae(
    dictionary: AbstractDictionary, folder: str | Path, *, metadata: Mapping[str, object] | None = None
) -> None:
    """Writes `dictionary` as a SAELens folder, `cfg.json` and `sae_weights.safetensors`. `jc.load_sae(folder)` gives it back.

    It is written aside and renamed into place, so that nothing half-written is left. What a SAELens class computes in another way is
    rewritten into its parameters (the input bias of a transcoder into `b_enc`); the latents and the reconstruction are the same.

    **Arguments:** - `metadata`: what else SAELens should know, such as `model_name` or `dataset_path`.

    **Raises:** `ValueError` for a dictionary that no SAELens class can express, or if `folder` exists and is no SAELens dictionary.

    >>> import pathlib, tempfile
    >>> W = jnp.eye(4, 8)
    >>> sae = jc.saes.SAE(W, jnp.zeros(8), W.T, jnp.zeros(4), jc.saes.ReLU(), jc.Site(0, jc.Kind.MLP_OUT))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jc.save_sae(sae, f"{folder}/sae", metadata={"model_name": "gpt2"})
    ...     sorted(path.name for path in pathlib.Path(folder, "sae").iterdir())
    ['cfg.json', 'sae_weights.safetensors']
    """
    if isinstance(dictionary, SAE):
        config, tensors = _sae(dictionary)
    elif isinstance(dictionary, Transcoder):
        config, tensors = _transcoder(dictionary)
    else:
        raise _cannot(f"a dictionary of type {type(dictionary).__name__}")
    config = {
        **config,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": str(tensors["W_dec"].dtype),
        "device": "cpu",
        "reshape_activations": "hook_z" if dictionary.reads is not None and dictionary.reads.kind == Kind.Z else "none",
        "metadata": {**(metadata or {}), **_metadata(dictionary)},
    }
    with writing_folder(folder, marker="cfg.json", what="SAELens dictionary") as aside:
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}, aside / "sae_weights.safetensors"
        )
        (aside / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _sae(sae: SAE) -> tuple[dict, dict[str, np.ndarray]]:
    tensors = {name: np.asarray(getattr(sae, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    config: dict[str, object] = {"apply_b_dec_to_input": sae.centred, "normalize_activations": _normalisation(sae)}
    if isinstance(sae.activation, ReLU):
        return {**config, "architecture": "standard"}, tensors
    if isinstance(sae.activation, JumpReLU):
        return {**config, "architecture": "jumprelu"}, {**tensors, "threshold": _threshold(sae.activation, sae)}
    if isinstance(sae.activation, TopK) and sae.activation.rectified:
        return {**config, "architecture": "topk", "k": sae.activation.k, "rescale_acts_by_decoder_norm": False}, tensors
    if isinstance(sae.activation, AbsTopK):
        return {
            **config,
            "architecture": "abstopk",
            "k": sae.activation.k,
            "rescale_acts_by_decoder_norm": False,
        }, tensors
    if isinstance(sae.activation, Gated):
        return {**config, "architecture": "gated"}, _gated(sae.activation, tensors)
    raise _cannot(f"the activation {_described(sae.activation)}")


def _transcoder(transcoder: Transcoder) -> tuple[dict, dict[str, np.ndarray]]:
    tensors = {name: np.asarray(getattr(transcoder, name)) for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if transcoder.b_in is not None:  # (x - b_in) W_enc + b_enc
        tensors["b_enc"] = tensors["b_enc"] - np.asarray(transcoder.b_in) @ tensors["W_enc"]
    config: dict[str, object] = {
        "d_out": transcoder.d_out,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    if not isinstance(transcoder.activation, ReLU | JumpReLU):
        raise _cannot(f"a transcoder with the activation {_described(transcoder.activation)}")
    architecture = "transcoder"
    if transcoder.W_skip is not None:
        architecture, tensors["W_skip"] = f"skip_{architecture}", np.asarray(transcoder.W_skip).T
    if isinstance(transcoder.activation, JumpReLU):
        architecture, tensors["threshold"] = f"jumprelu_{architecture}", _threshold(transcoder.activation, transcoder)
    return {**config, "architecture": architecture}, tensors


def _gated(activation: Gated, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SAELens' gated class has no `b_enc`: its part in either gate goes into that gate's bias."""
    r_mag, b_gate, b_mag = (np.asarray(array) for array in (activation.r_mag, activation.b_gate, activation.b_mag))
    b_enc = tensors["b_enc"]
    rest = {name: array for name, array in tensors.items() if name != "b_enc"}
    return {**rest, "r_mag": r_mag, "b_gate": b_gate + b_enc, "b_mag": b_mag + np.exp(r_mag) * b_enc}


def _threshold(activation: JumpReLU, dictionary: AbstractDictionary) -> np.ndarray:
    return np.broadcast_to(np.asarray(activation.threshold), (dictionary.d_sae,))


def _normalisation(sae: SAE) -> str:
    normalisation = sae.normalisation
    if normalisation is None:
        return "none"
    if isinstance(normalisation, Standardise) and normalisation.eps == 1e-5:
        return "layer_norm"
    if isinstance(normalisation, UnitNorm) and normalisation.eps == 0:
        return "constant_norm_rescale"
    raise _cannot(f"the normalisation {type(normalisation).__name__} with eps {normalisation.eps}")


def _metadata(dictionary: AbstractDictionary) -> dict[str, object]:
    config: dict[str, object] = {
        "sae_lens_version": _VERSION,
        "sae_lens_training_version": None,
        "hook_head_index": None,
        # Of a layer norm it is after the weight to TransformerLens 2, which SAELens takes its names from.
        "hook_normalized": "before the norm's weight",
    }
    if dictionary.reads is not None:
        config["hook_name"] = str(dictionary.reads)
    if dictionary.site is not None and isinstance(dictionary, Transcoder):
        config["hook_name_out"] = str(dictionary.site)
    if dictionary.processing is not None:
        steps = {name: step in dictionary.processing for name, step in zip(_KWARGS, STEPS, strict=True)}
        config["model_from_pretrained_kwargs"] = steps
    return config


def _described(activation: object) -> str:
    name = type(activation).__name__
    return f"{name} that keeps negative latents" if isinstance(activation, TopK) else name


def _cannot(what: str) -> ValueError:
    return ValueError(
        f"SAELens has no class for {what}. It has standard, gated, jumprelu, topk and abstopk dictionaries, and transcoders with ReLU or "
        "JumpReLU, with or without a linear path."
    )
