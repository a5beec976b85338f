"""Dictionaries of SAELens, from its predecessor sae_training to version 6: a folder with `cfg.json` and `sae_weights.safetensors`, or one
`.pt` file with both, `{cfg, state_dict}`.

Reference: github.com/jbloomAus/SAELens. Its run-time rescaling of a topk dictionary's latents by the norms of their directions is
folded into the weights, and so is a fine-tuned scale of the latents: the latents and the reconstruction are the same. A checkpoint from the
training of a batchtopk or matryoshka_batchtopk dictionary is read as what SAELens saves at its end: a JumpReLU with the threshold that was
learned so far.
"""

from collections.abc import Collection, Mapping

import numpy as np

from ..._checks import check_positive
from ..._sites import Kind, Site
from ...saes import (
    AbsTopK,
    AbstractActivation,
    AbstractDictionary,
    AbstractNormalisation,
    Gated,
    JumpReLU,
    ReLU,
    SAE,
    Standardise,
    TanhReLU,
    TopK,
    Transcoder,
    UnitNorm,
)
from .._read import contents
from ._hooks import of_hf_hook, of_version_2, parsed
from ._parts import decoder_norms, Parts, scale_input, scale_latents, unit_decoder
from ._reader import Reader
from ._releases import norm_factor_of
from ._saelens_config import OF_K, parse, SaeLensConfig
from ._source import Source
from ._tensors import checked, Table, warn


_SAE = {"W_enc": "d_in d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
_TRANSCODER = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_out", "b_dec": "d_out"}
TENSORS: dict[str, Table] = {
    "standard": {**_SAE, "b_enc": "d_sae"},
    "gated": {**_SAE, "b_gate": "d_sae", "r_mag": "d_sae", "b_mag": "d_sae"},
    "jumprelu": {**_SAE, "b_enc": "d_sae", "threshold": "d_sae"},
    "topk": {**_SAE, "b_enc": "d_sae"},
    "abstopk": {**_SAE, "b_enc": "d_sae"},
    "batchtopk": {**_SAE, "b_enc": "d_sae", "topk_threshold": ""},
    "matryoshka_batchtopk": {**_SAE, "b_enc": "d_sae", "topk_threshold": ""},
    "transcoder": _TRANSCODER,
    "skip_transcoder": {**_TRANSCODER, "W_skip": "d_out d_in"},
    "jumprelu_transcoder": {**_TRANSCODER, "threshold": "d_sae"},
    "jumprelu_skip_transcoder": {**_TRANSCODER, "threshold": "d_sae", "W_skip": "d_out d_in"},
}
FILE = "sae_weights.safetensors"
_SCALES = {"scaling_factor": "d_sae", "finetuning_scaling_factor": "d_sae"}
_NORMALISATIONS = {"layer_norm": Standardise, "constant_norm_rescale": UnitNorm}


def read(
    source: Source,
    *,
    reads: Site | str | None = None,
    norm_scaling_factor: float | None = None,
    normalize_decoder: bool = False,
    ignore_config: Collection[str] = (),
) -> AbstractDictionary:
    """Reads a dictionary from a SAELens folder.

    **Arguments:**

    - `reads`: where a transcoder reads, if `cfg.json` does not say it or says it otherwise.
    - `norm_scaling_factor`: for `normalize_activations: expected_average_only_in`, what its training activations were multiplied by. It
      is folded into the weights. Without it nothing is done, as SAELens does nothing when such a dictionary runs, and a warning says so.
    - `normalize_decoder`: give every direction norm 1 and scale the latents to match.
    - `ignore_config`: attributes of `cfg.json` that this reader does not know and that change nothing.
    """
    cfg, state = _configuration(source)
    config = parse(cfg, source.name, source.repository, ignore_config)
    read_at, site = _sites(config, source, None if reads is None else Site.parse(reads))
    parts = _parts(config, state, source)
    parts = _average_norm(parts, config, read_at, source, norm_scaling_factor)
    if normalize_decoder:
        _check_scalable(config, source)
        parts = unit_decoder(parts)
    arrays = source.leaves(parts["W_enc"], parts["b_enc"], parts["W_dec"], parts["b_dec"])
    activation = source.activation(_activation(config, parts, source))
    origin = f"{source.name} (SAELens {config.architecture})"
    if _is_transcoder(config):
        skip = source.leaf(parts["W_skip"].T) if "W_skip" in parts else None
        return Transcoder(
            **arrays,
            activation=activation,
            reads=read_at,
            site=site,
            processing=config.processing,
            W_skip=skip,
            origin=origin,
        )
    return SAE(
        **arrays,
        activation=activation,
        site=site,
        processing=config.processing,
        centred=config.apply_b_dec_to_input,
        normalisation=_normalisation(config),
        origin=origin,
    )


def _configuration(source: Source) -> tuple[dict, Mapping[str, object]]:
    """Reads the configuration, and the tensors that go with it."""
    if {"cfg", "state_dict"} <= set(source.state):
        cfg, state = source.state["cfg"], source.state["state_dict"]
        if not isinstance(cfg, dict) or not isinstance(state, Mapping):
            raise ValueError(f"{source.name}: expected `cfg` and `state_dict` to be dictionaries.")
        return cfg, state
    cfg = source.json("cfg.json")
    if cfg is None:
        raise ValueError(
            f"{source.name} is a SAELens dictionary without its cfg.json. Put it beside the weights. {contents(source.path.parent)}"
        )
    return cfg, source.state


def _is_transcoder(config: SaeLensConfig) -> bool:
    return config.architecture.endswith("transcoder")


def _sites(config: SaeLensConfig, source: Source, reads: Site | None) -> tuple[Site | None, Site | None]:
    """Says where it reads and where it reconstructs. The caller's site is the latter."""
    if not _is_transcoder(config):
        if reads is not None:
            raise ValueError(
                f"{source.name}: reads=… is for a transcoder, and this one is {config.architecture}. Use site=…."
            )
        site = source.site or _named(config, source)
        return site, site
    if config.normalize_activations in (*_NORMALISATIONS, "constant_scalar_rescale"):
        raise ValueError(
            f"{source.name}: normalize_activations {config.normalize_activations!r} is not supported for a transcoder."
        )
    reads = reads or _named(config, source)
    written = source.site or parsed(config.hook_name_out, source.name, "hook_name_out")
    if written is None and reads is not None and reads.kind in (Kind.LN2_NORMALIZED, Kind.MLP_IN, Kind.RESID_MID):
        written = Site(reads.layer, Kind.MLP_OUT)
    return reads, written


def _named(config: SaeLensConfig, source: Source) -> Site | None:
    """Finds the site that the configuration says it reads."""
    hook = config.hook_name or ""
    if hook.endswith(".hook_mlp_in"):
        # SAELens' word for what the MLP reads; TransformerLens' for the stream before the norm.
        if config.hf_hook_name is None:
            raise ValueError(
                f"{source.name}: hook_name is {hook!r}, which is the stream before the norm to some and what the MLP reads to others, "
                "and no hf_hook_name says which. Pass reads=… (blocks.N.hook_resid_mid, blocks.N.mlp.hook_in)."
            )
        return of_hf_hook(config.hf_hook_name, source.name, "hf_hook_name")
    site = parsed(hook, source.name, "hook_name")
    return site if config.hook_normalized is not None else of_version_2(site, config.model, config.processing)


def _parts(config: SaeLensConfig, stored: Mapping[str, object], source: Source) -> Parts:
    table = {**TENSORS[config.architecture], **_SCALES}
    if "log_threshold" in stored and "threshold" in table and "threshold" not in stored:  # as its training writes it
        table["log_threshold"] = table.pop("threshold")
    sizes = {"d_in": config.d_in, "d_sae": config.d_sae, "d_out": config.d_out}
    parts, _ = checked(stored, table, source, optional=tuple(_SCALES), sizes=sizes)
    if "log_threshold" in parts:
        parts["threshold"] = np.exp(parts.pop("log_threshold"))
    parts = {"b_enc": np.zeros_like(parts["W_enc"][0]), **parts}  # gated has no bias of its own
    # The norms are those of the directions as they are stored, so this is before anything that changes them.
    if (
        config.rescale_acts_by_decoder_norm and "topk" in config.architecture
    ):  # the other classes have no such attribute
        parts = scale_latents(parts, decoder_norms(parts))
    parts = _finetuned(_learned_threshold(parts, source), config, source)
    return scale_input(parts, config.scalar) if config.scalar != 1 else parts


def _learned_threshold(parts: Parts, source: Source) -> Parts:
    """Finds the threshold that a batch-wise training learned, for all latents. It compares with latents as they are trained, which is after
    their rescaling by the norms of their directions.
    """
    if "topk_threshold" not in parts:
        return parts
    threshold = float(parts["topk_threshold"])
    if threshold <= 0:
        warn(f"{source.name}: its topk_threshold is {threshold:g}, so none was learnt, and it runs as a plain ReLU.")
    rest = {name: array for name, array in parts.items() if name != "topk_threshold"}
    return {**rest, "threshold": np.full_like(parts["b_enc"], threshold)}


def _finetuned(parts: Parts, config: SaeLensConfig, source: Source) -> Parts:
    """Finds the fine-tuned scale of each latent in the decoder. Older versions wrote one of ones everywhere."""
    scales = [parts[name] for name in _SCALES if name in parts and not np.allclose(parts[name], 1)]
    rest = {name: array for name, array in parts.items() if name not in _SCALES}
    if not scales:
        return rest
    if not config.finetuning_scaling_factor:
        raise ValueError(
            f"{source.name} holds a `scaling_factor` other than one, and cfg.json says finetuning_scaling_factor is false. Which is it?"
        )
    return {**rest, "W_dec": rest["W_dec"] * scales[0][:, None]}


def _average_norm(parts: Parts, config: SaeLensConfig, site: Site | None, source: Source, given: float | None) -> Parts:
    if config.normalize_activations != "expected_average_only_in":
        if given is not None:
            raise ValueError(
                f"{source.name}: norm_scaling_factor is for normalize_activations 'expected_average_only_in', and cfg.json says "
                f"{config.normalize_activations!r}."
            )
        return parts
    if given is not None:
        check_positive("norm_scaling_factor", given)
    factor = given if given is not None else _stored_factor(source, site)
    if factor is None:
        warn(
            f"{source.name} was trained on activations multiplied by a factor that it does not hold (normalize_activations "
            "'expected_average_only_in'), and on others its latents mean little. Pass norm_scaling_factor=…, sqrt(d_in) over their "
            "mean norm."
        )
        return parts
    if _is_transcoder(config):
        raise ValueError(f"{source.name}: norm_scaling_factor is not supported for a transcoder.")
    return scale_input(parts, float(factor))


def _stored_factor(source: Source, site: Site | None) -> float | None:
    beside: Mapping[str, float | None] = source.json("activation_scaler.json") or {}
    factor = beside.get("scaling_factor")
    if factor is None:
        return norm_factor_of(source.repository, None if site is None else site.layer)
    check_positive(f"{source.path.parent / 'activation_scaler.json'}: scaling_factor", factor)
    return factor


def _check_scalable(config: SaeLensConfig, source: Source) -> None:
    if (config.architecture in OF_K and not config.rescale_acts_by_decoder_norm) or config.activation_fn == "tanh-relu":
        raise ValueError(
            f"{source.name}: normalize_decoder would change which latents this {config.architecture} dictionary turns on."
        )


def _activation(config: SaeLensConfig, parts: Parts, source: Source) -> AbstractActivation:
    if config.architecture == "gated":
        return Gated(source.leaf(parts["r_mag"]), source.leaf(parts["b_gate"]), source.leaf(parts["b_mag"]))
    if "threshold" in parts:
        return JumpReLU(source.leaf(parts["threshold"]))
    if config.k is not None:
        return TopK(config.k) if config.architecture == "topk" else AbsTopK(config.k)
    return TanhReLU() if config.activation_fn == "tanh-relu" else ReLU()


def _normalisation(config: SaeLensConfig) -> AbstractNormalisation | None:
    kind = _NORMALISATIONS.get(config.normalize_activations)
    return None if kind is None else kind()


def _fits(source: Source) -> bool:
    names = set(source.state)
    if source.path.name == FILE:  # llamascopium calls its files so, too
        return not names & {"encoder.weight", "W_E"}
    inner = source.state.get("state_dict")
    return "cfg" in names and isinstance(inner, Mapping) and "b_dec_out" not in inner


READERS = (Reader("saelens", read, _fits, files=(FILE,)),)
