"""Sites from the names that files and folders of dictionaries go by."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..._sites import Kind, Site


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
