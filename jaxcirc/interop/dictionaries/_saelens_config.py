"""What a SAELens `cfg.json` says, from its predecessor sae_training to version 6: one shape for all, every attribute handled, passed over
because it is of the training, or refused.

Reference: github.com/jbloomAus/SAELens (its defaults for configurations from before version 6 are these).
"""

import dataclasses
import re
from collections.abc import Collection

from ...saes._processing import STEPS
from .._attributes import Inert, inert
from ._hooks import in_layer
from ._releases import kwargs_of
from ._tensors import listed, warn
from ._training import is_of_training


ARCHITECTURES = (
    "standard",
    "gated",
    "jumprelu",
    "topk",
    "abstopk",
    "batchtopk",
    "matryoshka_batchtopk",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
OF_K = ("topk", "abstopk")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "constant_scalar_rescale", "layer_norm")
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_template": "hook_name",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
_STEPS = dict(zip(("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), STEPS, strict=True))
# From this version on the models are loaded without the processing that is not asked for; before, with all of it by default.
_UNPROCESSED_SINCE = (3, 19, 2)
_HANDLED = """
architecture d_in d_sae d_out k rescale_acts_by_decoder_norm apply_b_dec_to_input normalize_activations reshape_activations
activation_fn activation_fn_kwargs finetuning_scaling_factor hook_name hook_name_out hook_layer hook_layer_out
hf_hook_name hf_hook_name_out hook_normalized model_from_pretrained_kwargs sae_lens_version sae_lens_training_version metadata
""".split()
_ONE_HEAD = "the dictionary is of one head alone"
_SCALAR = "activation_normalization_factor"
# Refused unless they are at a value with which they change nothing.
_ONLY: dict[str, Inert] = {
    "flatten_activations_over_layer": inert(False, None, does="all heads of a layer are examples of one dictionary"),
    "hook_head_index": inert(None, does=_ONE_HEAD),
    "hook_head_index_out": inert(None, does=_ONE_HEAD),
    "hook_head_indices": inert(None, [], does=_ONE_HEAD),
    "hook_point_head_index": inert(None, does=_ONE_HEAD),
    "hook_point_head_indices": inert(None, [], does=_ONE_HEAD),
    "tied_weights": inert(False, None, does="the decoder is the transposed encoder"),
}


@dataclasses.dataclass(frozen=True)
class SaeLensConfig:
    """What a configuration says of what its dictionary computes, where, and of which model."""

    architecture: str
    d_in: int | None
    d_sae: int | None
    d_out: int | None
    k: int | None
    rescale_acts_by_decoder_norm: bool
    apply_b_dec_to_input: bool
    normalize_activations: str
    scalar: float
    activation_fn: str
    finetuning_scaling_factor: bool
    hook_name: str | None
    hook_name_out: str | None
    hf_hook_name: str | None
    model: str | None
    hook_normalized: str | None
    processing: tuple[str, ...] | None


def parse(config: dict, source: str, repository: str, ignore: Collection[str]) -> SaeLensConfig:
    """Reads the configuration of any version.

    **Raises:** `ValueError` for an architecture or an attribute that is not supported, naming it.
    """
    architecture = config.get("architecture") or "standard"
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"{source}: architecture {architecture!r} is not supported. Supported are {', '.join(ARCHITECTURES)}."
        )
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError(f"{source}: `metadata` must be an object, got a {type(metadata).__name__}.")
    own, config = config, {**_renamed(metadata, source), **_renamed(config, source)}
    _check_inert(config, source, ignore)
    normalisation = _normalisation(config.get("normalize_activations"), source)
    fn_kwargs = config.get("activation_fn_kwargs") or {}
    activation = config.get("activation_fn") or "relu"
    if activation == "topk" and architecture == "standard":
        architecture, activation = "topk", "relu"
    k = config.get("k", fn_kwargs.get("k"))
    hook = config.get("hook_name")
    _check_supported(config, architecture, activation, k, hook, source)
    _check_known(own, source, ignore)  # last: a dictionary of another kind has attributes of its own
    return SaeLensConfig(
        architecture=architecture,
        d_in=config.get("d_in"),
        d_sae=config.get("d_sae"),
        d_out=config.get("d_out"),
        k=_k(k, source) if architecture in OF_K else None,
        rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        normalize_activations=normalisation,
        scalar=_scalar(config, normalisation, source) if _SCALAR not in ignore else 1.0,
        activation_fn=activation,
        finetuning_scaling_factor=bool(config.get("finetuning_scaling_factor", False)),
        hook_name=hook,
        hook_name_out=config.get("hook_name_out"),
        hf_hook_name=config.get("hf_hook_name"),
        model=config.get("model_name"),
        hook_normalized=config.get("hook_normalized"),
        processing=_processing(config, source, repository),
    )


def _check_known(config: dict, source: str, ignore: Collection[str]) -> None:
    known = {*_HANDLED, _SCALAR, *_RENAMED, *_ONLY, *ignore}
    unknown = [name for name in config if name not in known and not is_of_training(name)]
    if unknown:
        raise ValueError(
            f"{source}: the attribute {listed(unknown[:5])} of cfg.json is not supported. If it changes nothing that the trained "
            f"dictionary computes, pass ignore_config={unknown!r}."
        )


def _check_inert(config: dict, source: str, ignore: Collection[str]) -> None:
    for name, row in _ONLY.items():
        if name in config and name not in ignore and not row.holds(config[name], config):
            raise ValueError(
                f"{source}: `{name}` of cfg.json is {config[name]!r}, which is not supported; only {row.values[0]!r} is. It says that "
                f"{row.does}."
            )


def _renamed(config: dict, source: str) -> dict:
    """Puts `config` under the newest names, with the layer in the names of hooks. Of two names for one attribute, as a template and the
    name that it gives, the one that is filled counts; they must not disagree.
    """
    layer = next((config[name] for name in ("hook_point_layer", "hook_layer") if config.get(name) is not None), None)
    out_layer = config.get("hook_layer_out")
    layers = {"hook_name": layer, "hook_name_out": layer if out_layer is None else out_layer}
    out: dict[str, object] = {}
    given: dict[str, str] = {}
    for name, value in config.items():
        new = _RENAMED[name] if name in _RENAMED else str(name)
        if new in layers:
            value = in_layer(value, layers[new])
        if value is None and new in out:
            continue
        if out.get(new, value) not in (None, value):
            raise ValueError(f"{source}: cfg.json says both {given[new]} = {out[new]!r} and {name} = {value!r}.")
        out[new], given[new] = value, name
    return out


def _k(k: object, source: str) -> int:
    if isinstance(k, bool) or not isinstance(k, int | float) or not float(k).is_integer() or k < 1:
        raise ValueError(
            f"{source}: `k` of cfg.json is {k!r}; expected how many latents stay on, a whole number from 1."
        )
    return int(k)


def _check_supported(
    config: dict, architecture: str, activation: str, k: object, hook: str | None, source: str
) -> None:
    known = (
        ("relu", "tanh-relu") if architecture == "standard" else ("relu", "topk") if architecture in OF_K else ("relu",)
    )
    if activation not in known:
        raise ValueError(
            f"{source}: activation_fn {activation!r} is not supported for {architecture}. Supported: {', '.join(known)}."
        )
    if architecture in OF_K and k is None:
        raise ValueError(
            f"{source}: {'a' if architecture == 'topk' else 'an'} {architecture} dictionary without `k` in cfg.json."
        )
    reshape = config.get("reshape_activations", "hook_z" if "hook_z" in (hook or "") else "none")
    if reshape != ("hook_z" if "hook_z" in (hook or "") else "none"):
        raise ValueError(
            f"{source}: reshape_activations is {reshape!r} at {hook}. Supported is 'hook_z', all heads as one vector, at hook_z, and "
            "'none' elsewhere."
        )


def _normalisation(value: object, source: str) -> str:
    if isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    name = "none" if value is None else str(value)
    if name not in NORMALISATIONS:
        raise ValueError(
            f"{source}: normalize_activations {name!r} is not supported. Supported are {', '.join(NORMALISATIONS)}."
        )
    return name


def _scalar(config: dict, normalisation: str, source: str) -> float:
    """Finds the one number that activations are multiplied by, 1 for none."""
    factor = config.get(_SCALAR)
    if normalisation != "constant_scalar_rescale":
        if factor not in (1.0, None):
            raise ValueError(
                f"{source}: `{_SCALAR}` of cfg.json is {factor!r}, which is not supported; only 1.0 is. It says that activations are "
                f"multiplied by it, and normalize_activations is {normalisation!r}."
            )
        return 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < float("inf"):
        raise ValueError(
            f"{source}: normalize_activations is constant_scalar_rescale, and `{_SCALAR}` of cfg.json is {factor!r}; expected the number "
            "that activations are multiplied by."
        )
    return float(factor)


def _processing(config: dict, source: str, repository: str) -> tuple[str, ...] | None:
    """Finds the steps of the model's loading: what was asked for, over the defaults of the version that trained."""
    known, asked = kwargs_of(repository), config.get("model_from_pretrained_kwargs")
    if known is not None:
        return tuple(step for name, step in _STEPS.items() if known.get(name, False))
    if asked is None:
        return None
    if asked.get("refactor_factored_attn_matrices"):
        warn(f"{source}: its model had its attention matrices refactored, which jc.process_weights does not do.")
    version = config.get("sae_lens_training_version") or config.get("sae_lens_version")
    numbers = tuple(int(n) for n in re.findall(r"\d+", str(version))[:3]) if version else _UNPROCESSED_SINCE
    return tuple(step for name, step in _STEPS.items() if asked.get(name, numbers < _UNPROCESSED_SINCE))
