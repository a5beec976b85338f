"""Sites from the names that files and folders of dictionaries go by."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..._sites import Kind, Site
from ._source import Listed


# Outputs of submodules as dictionary_learning calls them, `mlp_out_layer3`, and feature-circuits, `mlp_3`; `attn` is behind `W_O`.
_SUBMODULE = re.compile(r"(resid_out|resid_post|attn_out|mlp_out)_layer_?(\d+)|(resid|attn|mlp)_(\d+)")
_KINDS = {
    **dict.fromkeys(("resid_out", "resid_post", "resid"), Kind.RESID_POST),
    **dict.fromkeys(("attn_out", "attn"), Kind.ATTN_OUT),
    **dict.fromkeys(("mlp_out", "mlp"), Kind.MLP_OUT),
}


def of_submodule(name: str) -> Site | None:
    """Finds the site of a submodule's name in dictionary_learning and feature-circuits, `mlp_out_layer3`, `mlp_3` or `embed`; `None` for
    another.
    """
    if name == "embed":
        return Site(None, Kind.EMBED)
    match = _SUBMODULE.fullmatch(name)
    return None if match is None else Site(int(match[2] or match[4]), _KINDS[match[1] or match[3]])


# A module's name in transformers, without what stands in front of the layer's number: the kinds of its input and its output. What a
# sublayer reads is the norm's output with its weight. The norms themselves are left out: which one `post_attention_layernorm` is depends on
# the family.
_MODULES: dict[str, tuple[Kind, Kind]] = {
    "": (Kind.RESID_PRE, Kind.RESID_POST),
    **dict.fromkeys(("attn", "attn.attention", "attention", "self_attn"), (Kind.ATTN_IN, Kind.ATTN_OUT)),
    "self_attn.q_proj": (Kind.ATTN_IN, Kind.Q),
    "self_attn.k_proj": (Kind.ATTN_IN, Kind.K),
    "self_attn.v_proj": (Kind.ATTN_IN, Kind.V),
    **dict.fromkeys(
        ("attn.c_proj", "attn.attention.out_proj", "attention.dense", "self_attn.o_proj"), (Kind.Z, Kind.ATTN_OUT)
    ),
    "mlp": (Kind.MLP_IN, Kind.MLP_OUT),
    **dict.fromkeys(("mlp.c_fc", "mlp.dense_h_to_4h", "mlp.gate_proj"), (Kind.MLP_IN, Kind.MLP_PRE)),
    "mlp.up_proj": (Kind.MLP_IN, Kind.MLP_PRE_LINEAR),
    "mlp.act": (Kind.MLP_PRE, Kind.MLP_POST),
    **dict.fromkeys(("mlp.c_proj", "mlp.dense_4h_to_h", "mlp.down_proj"), (Kind.MLP_POST, Kind.MLP_OUT)),
}
# In families with a norm behind each sublayer a module's output is not yet what is added to the stream.
_BEHIND = {Kind.ATTN_OUT: Kind.HEADS_OUT, Kind.MLP_OUT: Kind.NEURONS_OUT}
_NORM_BEHIND = re.compile(r"gemma-?[23]|olmo-?2", re.IGNORECASE)
_EMBEDDINGS = {"embed_tokens": Kind.EMBED, "embed_in": Kind.EMBED, "wte": Kind.EMBED, "wpe": Kind.POS_EMBED}
_MODULE = re.compile(r"(?:transformer\.|gpt_neox\.|model\.)?(?:(?:layers|h)\.(\d+)(?:\.(.+))?|(\w+))")


def of_module(name: str, model: str = "") -> tuple[Site | None, Site] | None:
    """Finds the sites of input and output of a module of transformers, `layers.5.mlp`, `h.5.attn` or `embed_in`, as it is named in the
    whole model or in the model without its head; `None` for another. Token ids, which embeddings read, are no site. `model`: its name,
    which tells the families with a norm behind each sublayer.
    """
    match = _MODULE.fullmatch(name)
    if match is None:
        return None
    if match[1] is None:
        kind = _EMBEDDINGS.get(match[3])
        return None if kind is None else (None, Site(None, kind))
    kinds = _MODULES.get(match[2] or "")
    if kinds is None:
        return None
    layer, out = int(match[1]), _BEHIND.get(kinds[1], kinds[1]) if _NORM_BEHIND.search(model) else kinds[1]
    return Site(layer, kinds[0]), Site(layer, out)


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


def tinymodel_sites(path: str) -> tuple[Site | None, Site | None]:
    """Says where the dictionary reads and reconstructs, by the tag in its path. That model has no norms: its MLP reads `resid_mid`."""
    match = re.search(r"(?:^|[/_-])([MA])(\d+)(?:[/_.-]|$)", path)
    if match is None:
        return None, None
    layer = int(match[2])
    out = Site(layer, Kind.MLP_OUT if match[1] == "M" else Kind.ATTN_OUT)
    return (Site(layer, Kind.RESID_MID), out) if match[1] == "M" else (out, out)


_LAYER_FILE = re.compile(r"(?:.+-SAE-l(\d+)|layer(\d+)\.sae)\.(?:pth?|bin|safetensors)")


def of_named_file(name: str) -> Site | None:
    """Finds the residual stream that a file of one layer names, `…-SAE-l19.pth` or `layer5.sae.pt`; `None` for another name."""
    match = _LAYER_FILE.fullmatch(name)
    return None if match is None else Site(int(match[1] or match[2]), Kind.RESID_POST)


def of_folder(path: Path) -> Site | None:
    """Finds the site that the nearest folder above `path` names as a submodule."""
    return next((site for folder in path.parents if (site := of_submodule(folder.name)) is not None), None)


def agreed(claims: Iterable[tuple[str, Site | None]], given: Site | None, source: str) -> Site | None:
    """Finds the one site that `claims`, pairs of (who says so, site), name; what the caller gave goes before.

    **Raises:** `ValueError` if two disagree.
    """
    if given is not None:
        return given
    known = [(who, site) for who, site in claims if site is not None]
    if len({site for _, site in known}) > 1:
        raise ValueError(
            f"{source}: its site is ambiguous, {' and '.join(f'{who} says `{site}`' for who, site in known)}. Say it: site=…."
        )
    return known[0][1] if known else None


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
