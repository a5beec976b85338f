"""The plain `.pt` families, each of one project: a few tensors, and a configuration or a file name that says where they belong."""

import re
from collections.abc import Mapping

import numpy as np

from ..._sites import Kind, Site
from ...saes import AbstractDictionary, ReLU, SAE, TopK, Transcoder
from ...saes._processing import STEPS
from ._dictionary_learning import is_here
from ._hooks import in_layer, parsed
from ._reader import Reader
from ._sites import agreed, of_named_file, tinymodel_sites
from ._source import Source
from ._tensors import checked, listed, Table


HOOK_Z_KK: Table = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
SPARSE_MLP: Table = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "decoder.weight": "d_out d_sae",
    "decoder.bias": "d_out",
}
TOPK_PT: Table = {
    "pre_bias": "d_in",
    "encoder_bias": "d_sae",
    "encoder_weights": "d_in d_sae",
    "decoder_weights": "d_sae d_in",
}
TRANSCODER_PT: Table = {
    "W_enc": "d_in d_sae",
    "b_enc": "d_sae",
    "W_dec": "d_sae d_out",
    "b_dec": "d_in",
    "b_dec_out": "d_out",
}
_E2E = {
    "encoder.0.weight": "d_sae d_in",
    "encoder.0.bias": "d_sae",
    "decoder.weight": "d_in d_sae",
    "decoder.bias": "d_in",
}


def read_hook_z_kk(source: Source) -> SAE:
    """An attention-output SAE of Kissane et al. 2024 (arXiv 2406.17759), `{name}.pt` with `{name}_cfg.json`: all heads of
    `attn.hook_z` as one vector, `b_dec` subtracted first. Their model was loaded with TransformerLens' whole processing.
    """
    name = f"{source.path.stem}_cfg.json"
    config = source.json(name)
    if config is None and source.site is None:
        raise ValueError(f"{source.name} has no {name} beside it, which says its site. Put it there, or pass site=….")
    config = config or {}
    sizes = {"d_in": config.get("act_size"), "d_sae": config.get("dict_size")}
    tensors, _ = checked(source.state, HOOK_Z_KK, source, sizes=sizes)
    site = source.site or parsed(config.get("act_name"), source.name, "act_name")
    return SAE(
        **source.leaves(tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec"]),
        activation=ReLU(),
        site=site,
        processing=STEPS,
        origin=f"{source.name} (hook_z_kk)",
    )


def e2e_prefixes(names: Mapping[str, object]) -> list[str]:
    """Finds the names, with their last dot, under which a file holds end-to-end SAEs: one for each site."""
    return [name.removesuffix("encoder.0.weight") for name in names if name.endswith("encoder.0.weight")]


def e2e_site(prefix: str, source: str) -> Site | None:
    """Finds the site of `saes.blocks-4-hook_resid_pre.`; `None` for a file of one SAE without prefix."""
    return parsed(prefix.removeprefix("saes.").removesuffix(".").replace("-", "."), source, "the name of its tensors")


def read_e2e(source: Source) -> SAE:
    """Reads an end-to-end SAE of Braun et al. 2024 (arXiv 2405.12241): the encoder does not subtract the decoder's bias, and the decoder's
    directions are of norm 1 whatever is stored. A file may hold several, each under its site's name; `site=` says which.
    """
    prefixes = e2e_prefixes(source.state)
    sites = {prefix: e2e_site(prefix, source.name) for prefix in prefixes}
    chosen = [
        prefix for prefix in prefixes if source.site is None or len(prefixes) == 1 or sites[prefix] == source.site
    ]
    if len(chosen) != 1:
        raise ValueError(
            f"{source.name} holds dictionaries for {listed([str(site) for site in sites.values()])}. Say which: site=…."
        )
    (prefix,) = chosen
    # What is not under `saes.` in a whole checkpoint is the language model.
    inside = {
        name: value
        for name, value in source.state.items()
        if name.startswith("saes.") or not prefix.startswith("saes.")
    }
    others = tuple(other for other in prefixes if other != prefix)
    state = {
        name.removeprefix(prefix): value for name, value in inside.items() if not others or not name.startswith(others)
    }
    tensors, _ = checked(state, _E2E, source)
    W_dec = tensors["decoder.weight"].T
    norms = np.linalg.norm(W_dec.astype(np.float64), axis=1, keepdims=True)
    return SAE(
        **source.leaves(
            tensors["encoder.0.weight"].T,
            tensors["encoder.0.bias"],
            (W_dec / np.maximum(norms, 1e-12)).astype(W_dec.dtype),
            tensors["decoder.bias"],
        ),
        activation=ReLU(),
        site=source.site or sites[prefix],
        processing=STEPS,  # its models are loaded with TransformerLens' whole processing
        centred=False,
        origin=f"{source.name} (e2e)",
    )


def read_sparse_mlp(source: Source, *, reads: Site | str | None = None) -> AbstractDictionary:
    """Reads a sparse MLP (a transcoder) or an SAE of noanabeshima/tinymodel, `relu(x W_enc + b_enc) W_dec + b_dec` either way. A name with
    `M2` in it is the transcoder of that layer's MLP, `A2` the SAE of its attention's output; else `site`, and `reads` for a transcoder,
    say what it is.
    """
    tensors, sizes = checked(source.state, SPARSE_MLP, source)
    arrays = source.leaves(
        tensors["encoder.weight"].T,
        tensors["encoder.bias"],
        tensors["decoder.weight"].T,
        tensors["decoder.bias"],
    )
    named = tinymodel_sites(source.path.as_posix())
    read_at = None if reads is None else Site.parse(reads)
    if read_at is None and source.site is None:
        read_at = named[0]
    site = agreed([("its name", named[1])], source.site, source.name)
    origin = f"{source.name} (sparse_mlp)"
    if read_at is not None and read_at != site:
        return Transcoder(**arrays, activation=ReLU(), reads=read_at, site=site, origin=origin)
    if sizes["d_in"] != sizes["d_out"]:
        raise ValueError(
            f"{source.name} maps {sizes['d_in']} numbers to {sizes['d_out']}: a transcoder. Say its sites: reads=…, site=…."
        )
    return SAE(**arrays, activation=ReLU(), site=site, centred=False, origin=origin)


def read_topk_pt(source: Source, *, k: int | None = None) -> SAE:
    """A TopK autoencoder of prestoj/tinystories_sae, `sae_{d_sae}_{k}.pt`: the `k` largest latents as they are, negative ones too.
    The file does not say its site. `k` is for a file of another name.
    """
    tensors, sizes = checked(source.state, TOPK_PT, source)
    match = re.fullmatch(r"sae_(\d+)_(\d+)", source.path.stem)
    named = int(match[2]) if match is not None and int(match[1]) == sizes["d_sae"] else None
    if k is not None and named is not None and k != named:
        raise ValueError(f"{source.name}: k={k} was asked for, and the file's name says {named}.")
    k = named if k is None else k
    if k is None:
        raise ValueError(
            f"{source.name}: neither the file nor its name says k, the number of latents that are on. Pass k=…."
        )
    return SAE(
        **source.leaves(
            tensors["encoder_weights"], tensors["encoder_bias"], tensors["decoder_weights"], tensors["pre_bias"]
        ),
        activation=source.activation(TopK(k, rectified=False)),
        site=source.site,
        processing=(),  # trained on the hidden states of the Hugging Face model as it is
        origin=f"{source.name} (topk_pt)",
    )


def read_transcoder_pt(source: Source, *, reads: Site | str | None = None) -> Transcoder:
    """Reads a transcoder of Dunefsky et al. 2024 (arXiv 2406.11944), `{cfg, state_dict}` or the tensors alone: it subtracts `b_dec`, which
    has the input's width, and adds `b_dec_out`. Without a configuration the file's name, or `reads` and `site`, say where it belongs.
    Their models were loaded with TransformerLens' whole processing, so that it reads what the norm gives before weight and bias.
    """
    state, config = source.state, source.state.get("cfg", {})
    inner = state.get("state_dict", state)
    if not isinstance(config, Mapping) or not isinstance(inner, Mapping):
        raise ValueError(f"{source.name}: expected `cfg` and `state_dict` to be dictionaries.")
    sizes = {"d_in": config.get("d_in"), "d_sae": config.get("d_sae"), "d_out": config.get("d_out")}
    tensors, _ = checked(inner, TRANSCODER_PT, source, sizes=sizes)
    named = re.search(r"blocks\.\d+\.(?:ln2\.hook_normalized|hook_resid_mid)", source.path.name)
    layer = config.get("hook_point_layer")
    named_site = config.get("hook_point") or config.get("hook_point_template") or (named[0] if named else None)
    out_said = config.get("out_hook_point") or config.get("out_hook_point_template")
    read_at = Site.parse(reads) if reads is not None else parsed(in_layer(named_site, layer), source.name, "hook_point")
    out = parsed(in_layer(out_said, config.get("out_hook_point_layer", layer)), source.name, "out_hook_point")
    if out is None and read_at is not None and read_at.kind in (Kind.LN2_NORMALIZED, Kind.RESID_MID):
        out = Site(read_at.layer, Kind.MLP_OUT)
    return Transcoder(
        **source.leaves(tensors["W_enc"], tensors["b_enc"], tensors["W_dec"], tensors["b_dec_out"]),
        activation=ReLU(),
        reads=read_at,
        site=agreed([("its configuration", out)], source.site, source.name),
        processing=STEPS,
        b_in=source.leaf(tensors["b_dec"]),
        origin=f"{source.name} (transcoder_pt)",
    )


def _fits_kk(source: Source) -> bool:
    return source.json(f"{source.path.stem}_cfg.json") is not None and set(source.state) == set(HOOK_Z_KK)


def _fits_sparse_mlp(source: Source) -> bool:
    """Tells them from AutoEncoderNew of dictionary_learning, which has tensors of the same names, and from files that name their layer."""
    others = is_here(source) or of_named_file(source.path.name) is not None
    return set(source.state) == set(SPARSE_MLP) and not others


def _inside(source: Source) -> set[str]:
    """Finds the names under `state_dict` of a file that holds its configuration, too."""
    inner = source.state.get("state_dict")
    return set(inner) if "cfg" in source.state and isinstance(inner, Mapping) else set()


READERS = (
    Reader("hook_z_kk", read_hook_z_kk, _fits_kk),
    Reader("e2e", read_e2e, lambda source: bool(e2e_prefixes(source.state))),
    Reader("sparse_mlp", read_sparse_mlp, _fits_sparse_mlp),
    Reader("topk_pt", read_topk_pt, lambda source: set(source.state) == set(TOPK_PT)),
    Reader(
        "transcoder_pt",
        read_transcoder_pt,
        lambda source: "b_dec_out" in _inside(source) or {"W_enc", "b_dec_out"} <= set(source.state),
    ),
)
