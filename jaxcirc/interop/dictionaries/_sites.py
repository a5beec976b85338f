"""Sites from the names that files and folders of dictionaries go by."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..._sites import Kind, Site


_SUBMODULE = re.compile(r"(resid_out|resid_post|attn_out|mlp_out)_layer_?(\d+)")
_KINDS = {
    "resid_out": Kind.RESID_POST,
    "resid_post": Kind.RESID_POST,
    "attn_out": Kind.ATTN_OUT,
    "mlp_out": Kind.MLP_OUT,
}


def of_submodule(name: str) -> Site | None:
    """Finds the site of a submodule's name in dictionary_learning and feature-circuits, `mlp_out_layer3` or `embed`; `None` for another."""
    if name == "embed":
        return Site(None, Kind.EMBED)
    match = _SUBMODULE.fullmatch(name)
    return None if match is None else Site(int(match[2]), _KINDS[match[1]])


# A module's name in transformers, without what stands in front of the layer's number: the kinds of its input and its output. The norms
# are left out, since their output with weight and bias is no site of every version.
_MODULES: dict[str, tuple[Kind, Kind]] = {
    "": (Kind.RESID_PRE, Kind.RESID_POST),
    **dict.fromkeys(("attn", "attn.attention", "attention", "self_attn"), (Kind.LN1_NORMALIZED, Kind.ATTN_OUT)),
    **dict.fromkeys(
        ("attn.c_proj", "attn.attention.out_proj", "attention.dense", "self_attn.o_proj"), (Kind.Z, Kind.ATTN_OUT)
    ),
    "mlp": (Kind.LN2_NORMALIZED, Kind.MLP_OUT),
    **dict.fromkeys(("mlp.c_fc", "mlp.dense_h_to_4h"), (Kind.LN2_NORMALIZED, Kind.MLP_PRE)),
    "mlp.act": (Kind.MLP_PRE, Kind.MLP_POST),
    **dict.fromkeys(("mlp.c_proj", "mlp.dense_4h_to_h"), (Kind.MLP_POST, Kind.MLP_OUT)),
}
_EMBEDDINGS = {"embed_tokens": Kind.EMBED, "embed_in": Kind.EMBED, "wte": Kind.EMBED, "wpe": Kind.POS_EMBED}
_MODULE = re.compile(r"(?:transformer\.|gpt_neox\.|model\.)?(?:(?:layers|h)\.(\d+)(?:\.(.+))?|(\w+))")


def of_module(name: str) -> tuple[Site | None, Site] | None:
    """Finds the sites of input and output of a module of transformers, `layers.5.mlp`, `h.5.attn` or `embed_in`, as it is named in the
    whole model or in the model without its head; `None` for another. Token ids, which embeddings read, are no site.
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
    layer = int(match[1])
    return Site(layer, kinds[0]), Site(layer, kinds[1])


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
