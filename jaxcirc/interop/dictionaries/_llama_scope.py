"""Autoencoders of OpenMOSS: Llama Scope's two releases, and those of the library that came of it, llamascopium.

`h = x W_enc + b_enc`, `out = acts W_dec + b_dec`, nothing subtracted from `x`. They are trained on activations scaled to a mean norm of
sqrt(d_model), by `s = sqrt(d_model) / norm` of each side; that is in the weights here. Where `sparsity_include_decoder_norm` is set, it is
`h` times the norm of the latent's direction that decides which latents are on.

References: He et al. 2024, arXiv 2410.20526; github.com/OpenMOSS/Language-Model-SAEs.
"""

from collections.abc import Mapping

import numpy as np

from ...saes import AbstractActivation, AbstractDictionary, JumpReLU, ReLU, SAE, TopK, Transcoder
from .._read import contents
from ._hooks import parsed
from ._parts import decoder_norms, Parts, scale_latents, unit_decoder
from ._reader import Reader
from ._sites import agreed
from ._source import Source
from ._tensors import checked, Table


FILE = "final.safetensors"
_LINEAR: Table = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "decoder.weight": "d_out d_sae",
    "decoder.bias": "d_out",
}
_R1: Table = {**_LINEAR, "log_jumprelu_threshold": "d_sae"}
_LOG_THRESHOLD = "activation_function.log_jumprelu_threshold"
_NOW: Table = {"W_E": "d_in d_sae", "b_E": "d_sae", "W_D": "d_sae d_out", "b_D": "d_out", _LOG_THRESHOLD: "d_sae"}
_NORM = "dataset_average_activation_norm."
_ACTIVATIONS = ("relu", "jumprelu", "topk")


def read_first(source: Source) -> AbstractDictionary:
    """Reads an SAE of the first release, `Llama3_1-8B-Base-L15R-8x/checkpoints/final.safetensors` with `hyperparams.json` one folder up.
    Its one threshold compares with latents of the scale of the model's own activations, each for a direction of norm 1.
    """
    config = source.json("../hyperparams.json") or source.json("hyperparams.json")
    if config is None:
        raise ValueError(
            f"{source.name} is a dictionary of Llama Scope without its hyperparams.json, which lies one folder above it. "
            f"{contents(source.path.parent.parent)}"
        )
    threshold = config.get("jump_relu_threshold")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise ValueError(f"{source.name}: jump_relu_threshold of hyperparams.json is {threshold!r}; expected a number.")
    tensors, sizes = checked(source.state, _LINEAR, source, sizes=_sizes(config))
    norms = config.get("dataset_average_activation_norm") or {}
    scales = {side: _scale(norms.get(side), sizes[axis], source) for side, axis in (("in", "d_in"), ("out", "d_out"))}
    parts = _standardised(_linear(tensors), scales["in"], scales["out"])
    if config.get("sparsity_include_decoder_norm", False):
        parts = unit_decoder(parts)
    activation = JumpReLU(source.leaf(np.asarray(threshold, np.float32)))
    return _made(parts, activation, config, source, "Llama Scope")


def read_r1(source: Source) -> AbstractDictionary:
    """Reads an SAE of the release for R1's distilled Llama, `sae_weights.safetensors` with `config.json`: its norms are in its weights."""
    config = _config(source)
    tensors, _ = checked(source.state, _R1, source, sizes=_sizes(config))
    activation = JumpReLU(source.leaf(np.exp(tensors["log_jumprelu_threshold"])))
    return _made(_linear(tensors), activation, config, source, "Llama Scope R1")


def read_now(source: Source) -> AbstractDictionary:
    """Reads an SAE or a transcoder of llamascopium, `sae_weights.safetensors` with `config.json`, of `act_fn` relu, jumprelu or topk.

    With topk and `sparsity_include_decoder_norm` each latent comes multiplied by its direction's norm, and its direction divided by it:
    the k largest are then those that the library takes, and the reconstruction is the same.
    """
    config = _config(source)
    kind, glu = config.get("sae_type", "sae"), config.get("use_glu_encoder", False) or "W_E_glu" in source.state
    if kind != "sae" or glu:
        what = f"sae_type {kind!r}" if kind != "sae" else "an encoder with gates (use_glu_encoder)"
        raise ValueError(f"{source.name}: {what} is not supported. Supported is sae_type 'sae' without gates.")
    state = {name: value for name, value in source.state.items() if not name.startswith(_NORM)}
    tensors, _ = checked(state, _NOW, source, optional=("b_D", _LOG_THRESHOLD), sizes=_sizes(config))
    parts = {"W_enc": tensors["W_E"], "b_enc": tensors["b_E"], "W_dec": tensors["W_D"]}
    parts["b_dec"] = tensors.get(
        "b_D", np.zeros_like(tensors["W_D"][0] if len(tensors["W_D"]) else tensors["W_E"][:, 0])
    )
    parts = _normalised(parts, config, source)
    parts, activation = _activation(parts, tensors, config, source)
    return _made(parts, activation, config, source, "llamascopium")


def _config(source: Source) -> dict:
    config = source.json("config.json")
    if config is None:
        raise ValueError(
            f"{source.name} is a dictionary of llamascopium without its config.json. Put it beside the weights. "
            f"{contents(source.path.parent)}"
        )
    return config


def _sizes(config: Mapping[str, object]) -> dict[str, int | None]:
    d_model, d_sae = (
        value if isinstance(value, int) else None for value in (config.get("d_model"), config.get("d_sae"))
    )
    return {"d_in": d_model, "d_out": d_model, "d_sae": d_sae}


def _linear(tensors: Parts) -> dict[str, np.ndarray]:
    return {
        "W_enc": tensors["encoder.weight"].T,
        "b_enc": tensors["encoder.bias"],
        "W_dec": tensors["decoder.weight"].T,
        "b_dec": tensors["decoder.bias"],
    }


def _scale(norm: object, d_model: int, source: Source) -> float:
    """Finds what activations of this mean norm were multiplied by."""
    if isinstance(norm, bool) or not isinstance(norm, int | float) or not 0 < norm < np.inf:
        raise ValueError(
            f"{source.name}: dataset_average_activation_norm is {norm!r}; expected the mean norms of its input and its output."
        )
    return d_model**0.5 / norm


def _standardised(parts: Parts, s_in: float, s_out: float) -> dict[str, np.ndarray]:
    """What was trained on `s_in x` and towards `s_out y`, for `x` and `y`: latents and reconstruction in the model's own scale."""
    new = {"b_enc": parts["b_enc"] / s_in, "W_dec": parts["W_dec"] * (s_in / s_out), "b_dec": parts["b_dec"] / s_out}
    return {**parts, **{name: array.astype(parts[name].dtype, copy=False) for name, array in new.items()}}


def _normalised(parts: Parts, config: Mapping[str, object], source: Source) -> dict[str, np.ndarray]:
    """Puts the scales of the training's activations into the weights; latents keep the scale of the training."""
    mode = config.get("norm_activation", "dataset-wise")
    if mode == "inference":  # they are there already
        return dict(parts)
    if mode != "dataset-wise":
        raise ValueError(
            f"{source.name}: norm_activation {mode!r} is not supported. Supported are dataset-wise and inference."
        )
    ends = [str(config.get(name)) for name in ("hook_point_in", "hook_point_out")]
    if missing := [hook for hook in ends if _NORM + hook not in source.state]:
        raise ValueError(
            f"{source.name} misses `{_NORM}{missing[0]}`, the mean norm that its activations were divided by (norm_activation "
            "dataset-wise)."
        )
    norms = [float(np.asarray(source.state[_NORM + hook]).astype(np.float64)) for hook in ends]
    s_in, s_out = _scale(norms[0], parts["W_enc"].shape[0], source), _scale(norms[1], parts["W_dec"].shape[1], source)
    new = {"W_enc": parts["W_enc"] * s_in, "W_dec": parts["W_dec"] / s_out, "b_dec": parts["b_dec"] / s_out}
    return {**parts, **{name: array.astype(parts[name].dtype, copy=False) for name, array in new.items()}}


def _activation(
    parts: Parts, tensors: Parts, config: Mapping[str, object], source: Source
) -> tuple[Parts, AbstractActivation]:
    """Chooses the activation, and scales the latents or their thresholds so that it decides on what the library decides on."""
    name, by_norm = str(config.get("act_fn", "relu")).lower(), config.get("sparsity_include_decoder_norm", True)
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"{source.name}: act_fn {name!r} is not supported. Supported are {', '.join(_ACTIVATIONS)}; the latents of the others depend "
            "on the rest of the batch."
        )
    if name == "relu":
        return parts, ReLU()
    # What decides is `h` times this norm, in the scale in which the directions are stored.
    norms = decoder_norms({"W_dec": tensors["W_D"]}) if by_norm else np.ones(parts["b_enc"].shape)
    if name == "topk":
        k = config.get("top_k", 50)
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ValueError(f"{source.name}: top_k of config.json is {k!r}; expected how many latents stay on.")
        return scale_latents(parts, norms), source.activation(TopK(k))
    if _LOG_THRESHOLD not in tensors:
        raise ValueError(f"{source.name}: act_fn is jumprelu, and the file holds no `{_LOG_THRESHOLD}`.")
    threshold = np.exp(tensors[_LOG_THRESHOLD].astype(np.float64))
    # A latent without a direction is never on.
    threshold = np.where(norms == 0, np.inf, threshold / np.where(norms == 0, 1, norms))
    return parts, JumpReLU(source.leaf(threshold.astype(parts["b_enc"].dtype)))


def _made(
    parts: Parts, activation: AbstractActivation, config: Mapping[str, object], source: Source, what: str
) -> AbstractDictionary:
    read_at = parsed(config.get("hook_point_in"), source.name, "hook_point_in")
    written = parsed(config.get("hook_point_out"), source.name, "hook_point_out") or read_at
    site = agreed([("its configuration", written)], source.site, source.name)
    arrays, origin = (
        source.leaves(**{name: parts[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}),
        f"{source.name} ({what})",
    )
    if read_at == written:
        # The models are TransformerLens' without any processing.
        return SAE(**arrays, activation=activation, site=site, processing=(), centred=False, origin=origin)
    return Transcoder(**arrays, activation=activation, reads=read_at, site=site, processing=(), origin=origin)


def _fits_first(source: Source) -> bool:
    return set(source.state) == set(_LINEAR) and source.path.name == FILE


READERS = (
    Reader("llama_scope", read_first, _fits_first, files=(FILE,)),
    Reader("llama_scope_r1", read_r1, lambda source: set(source.state) == set(_R1), files=("sae_weights.safetensors",)),
    Reader("llamascopium", read_now, lambda source: "W_E" in source.state, files=("sae_weights.safetensors",)),
)
