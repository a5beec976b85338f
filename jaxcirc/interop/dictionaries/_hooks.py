"""Sites from the names of hooks in configurations, by table: TransformerLens', transformers' modules, circuit-tracer's."""

import re

from ..._sites import Kind, Site
from ._source import Listed


# The values of Gemma 3 that Gemma Scope 2 is about, as its configurations write them behind `model.layers.{layer}.`.
_HF_HOOKS: dict[str, Kind] = {
    "output": Kind.RESID_POST,
    "self_attn.o_proj.input": Kind.Z,
    "pre_feedforward_layernorm.output": Kind.MLP_IN,
    "post_feedforward_layernorm.output": Kind.MLP_OUT,
}
_HF_HOOK = re.compile(r"(?:language_model\.|model\.)*layers\.(\d+)\.(.+)")


def of_hf_hook(name: object, source: str, attribute: str) -> Site | None:
    """Finds the site of a module's input or output, `model.layers.3.self_attn.o_proj.input`; `None` for none.

    **Raises:** `ValueError` for one that is not in the table.
    """
    if not name:
        return None
    match = _HF_HOOK.fullmatch(str(name))
    if match is None or match[2] not in _HF_HOOKS:
        raise ValueError(
            f"{source}: {attribute} is {name!r}, which is no site that is known. Known are model.layers.N. and "
            f"{', '.join(_HF_HOOKS)}. To load it for a site, pass site=… and, of a transcoder, reads=…."
        )
    return Site(int(match[1]), _HF_HOOKS[match[2]])


# circuit-tracer's names within a block. Its `mlp.hook_out` is what is added to the stream, behind a norm where there is one.
_TRACER_HOOKS: dict[str, Kind] = {
    "hook_resid_mid": Kind.RESID_MID,
    "ln2.hook_normalized": Kind.LN2_NORMALIZED,
    "mlp.hook_in": Kind.MLP_IN,
    "mlp.hook_out": Kind.MLP_OUT,
    "hook_mlp_out": Kind.MLP_OUT,
}


def of_tracer_hook(name: object, layer: int, source: str, attribute: str) -> Site:
    """Finds the site that circuit-tracer's configuration names, in `layer`. **Raises:** `ValueError` for one that is not in the table."""
    if not isinstance(name, str) or name not in _TRACER_HOOKS:
        raise ValueError(
            f"{source}: {attribute} of config.yaml is {name!r}; expected one of {', '.join(_TRACER_HOOKS)}. Otherwise load each layer by "
            "itself, with reads=… and site=…."
        )
    return Site(layer, _TRACER_HOOKS[name])


def of_listed(member: Listed | None, source: str) -> tuple[Site | None, Site | None]:
    """Finds where a layer of one of circuit-tracer's sets reads and what it reconstructs, by the set's config.yaml, if it is of one."""
    if member is None:
        return None, None
    names = ("feature_input_hook", "feature_output_hook")
    read_at, site = (of_tracer_hook(member.config.get(name), member.layer, source, name) for name in names)
    return read_at, site


# Models with layer norms, by the beginnings of their names.
_LAYER_NORM = re.compile(
    r"(?:[\w.-]+/)?(?:gpt2|distilgpt2|gpt-neo|pythia|tiny-?stories|opt-|gelu-|solu-|attn-only|stanford-gpt2|alias-gpt2|bloom)",
    re.IGNORECASE,
)
_NORMALIZED = {Kind.LN1_NORMALIZED: Kind.ATTN_IN, Kind.LN2_NORMALIZED: Kind.MLP_IN}


def of_version_2(site: Site | None, model: object, processing: tuple[str, ...] | None) -> Site | None:
    """Finds what a `hook_normalized` of TransformerLens 2, which SAELens trains with, is called here: the value that was read.

    Of a layer norm it was the value *after* weight and bias, here `attn.hook_in` and `mlp.hook_in`; of an RMS norm the one before, as here.
    With folded norms the two are the same, and the name stays; so it does where it is not known what the model was.
    """
    if site is None or site.kind not in _NORMALIZED or processing is None or "fold_layer_norm" in processing:
        return site
    if not isinstance(model, str) or _LAYER_NORM.match(model) is None:
        return site
    return Site(site.layer, _NORMALIZED[site.kind])


def in_layer(name: object, layer: object) -> object:
    """Fills `layer` into a hook's name that is a template, `blocks.{layer}.hook_resid_pre`, if it is known."""
    if isinstance(layer, list | tuple) and len(layer) == 1:
        (layer,) = layer
    if not isinstance(name, str) or isinstance(layer, bool) or not isinstance(layer, int):
        return name
    return name.replace("{layer}", str(layer))


def parsed(name: object, source: str, attribute: str) -> Site | None:
    """Reads the site of a hook's name in a configuration, `None` for none."""
    if not name:
        return None
    if "{" in str(name):
        raise ValueError(
            f"{source}: {attribute} is {name!r}, a template, and no hook_point_layer says of which layer. Pass site=…."
        )
    try:
        return Site.parse(str(name))
    except ValueError as error:
        raise ValueError(
            f"{source}: {attribute} is {name!r}. {error} To load it for another site, pass site=…."
        ) from None
