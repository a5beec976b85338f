"""Dictionaries of EleutherAI's sparsify: a folder with `cfg.json` and `sae.safetensors`, called after the module that it was trained on.

`acts = activation(x' W_enc + b_enc)`, `out = acts W_dec + b_dec`, and `x W_skip` more if there is a skip connection. `x' = x - b_dec` where
`x` itself is reconstructed; one that transcodes reads the module's input as it is, and predicts its output. Reference:
github.com/EleutherAI/sparsify, whose own backward pass lets gradient through to selected latents that are 0; here their slope is 0.
"""

import re
from collections.abc import Collection

from ..._sites import Site
from ...saes import AbstractActivation, AbstractDictionary, GroupMax, SAE, TopK, Transcoder
from .._attributes import Inert, inert
from .._read import contents
from ._reader import Reader
from ._sites import of_module
from ._source import Source
from ._tensors import checked, listed, Table
from ._training import is_of_training


FILE = "sae.safetensors"
TENSORS: Table = {
    "encoder.weight": "d_sae d_in",
    "encoder.bias": "d_sae",
    "W_dec": "d_sae d_in",
    "b_dec": "d_in",
    "W_skip": "d_in d_in",
}
# `normalize_decoder` and `multi_topk` are of the training: the directions are stored as they are, and the second reconstruction only adds
# to the loss. `expansion_factor` counts where `num_latents` is 0, and the tensors say it either way.
_HANDLED = """
activation d_in expansion_factor k multi_topk normalize_decoder num_latents skip_connection transcode
""".split()
# Refused unless they are at a value with which they change nothing.
_ONLY: dict[str, Inert] = {
    "signed": inert(False, None, does="the latents that are largest by their absolute value stay on, with their sign"),
}


def read(source: Source, *, reads: Site | str | None = None, ignore_config: Collection[str] = ()) -> AbstractDictionary:
    """Reads a dictionary from a folder of sparsify.

    **Arguments:** - `reads`: where one that transcodes reads, in place of what its folder's name says. - `ignore_config`: attributes of
    `cfg.json` that this reader does not know and that change nothing.
    """
    config = _config(source, ignore_config)
    d_sae = config.get("num_latents") or None
    tensors, sizes = checked(
        source.state, TENSORS, source, optional=("W_skip",), sizes={"d_in": config.get("d_in"), "d_sae": d_sae}
    )
    skips, transcodes = bool(config.get("skip_connection", False)), bool(config.get("transcode", False))
    if skips != ("W_skip" in tensors):
        raise ValueError(
            f"{source.name}: cfg.json says skip_connection = {skips}, and the file holds {'a' if 'W_skip' in tensors else 'no'} "
            "`W_skip`. Do the two belong together?"
        )
    activation = source.activation(_activation(config, sizes["d_sae"], source))
    _check_known(config, source, ignore_config)
    arrays = source.leaves(tensors["encoder.weight"].T, tensors["encoder.bias"], tensors["W_dec"], tensors["b_dec"])
    origin = f"{source.name} (sparsify)"
    named_in, named_out = _sites(source)
    site = source.site or named_out
    if not transcodes and not skips:
        if reads is not None:
            raise ValueError(f"{source.name}: reads=… is for one that transcodes, and this one does not. Use site=….")
        # It was trained on the modules of the Hugging Face model as it is.
        return SAE(**arrays, activation=activation, site=site, processing=(), origin=origin)
    read_at = Site.parse(reads) if reads is not None else named_in if transcodes else site
    return Transcoder(
        **arrays,
        activation=activation,
        reads=read_at,
        site=site,
        processing=(),
        b_in=None if transcodes else arrays["b_dec"],
        W_skip=source.leaf(tensors["W_skip"].T) if skips else None,
        origin=origin,
    )


def _config(source: Source, ignore: Collection[str]) -> dict:
    config = source.json("cfg.json")
    if config is None:
        raise ValueError(
            f"{source.name} is a dictionary of sparsify without its cfg.json, which says its k. Put it beside the weights. "
            f"{contents(source.path.parent)}"
        )
    for name, value in config.items():
        if name in _ONLY and name not in ignore and not _ONLY[name].holds(value, config):
            raise ValueError(
                f"{source.name}: `{name}` of cfg.json is {value!r}, which is not supported. It says that {_ONLY[name].does}."
            )
    return config


def _check_known(config: dict, source: Source, ignore: Collection[str]) -> None:
    known = {*_HANDLED, *_ONLY, *ignore}
    if unknown := [name for name in config if name not in known and not is_of_training(name)]:
        raise ValueError(
            f"{source.name}: the attribute {listed(unknown[:5])} of cfg.json is not supported. If it changes nothing that the trained "
            f"dictionary computes, pass ignore_config={unknown!r}."
        )


def _activation(config: dict, d_sae: int, source: Source) -> AbstractActivation:
    name, k = config.get("activation") or "topk", config.get("k")
    if name not in ("topk", "groupmax"):
        raise ValueError(f"{source.name}: activation {name!r} is not supported. Supported are topk and groupmax.")
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= d_sae:
        raise ValueError(f"{source.name}: `k` of cfg.json is {k!r}; expected how many of the {d_sae} latents stay on.")
    if name == "topk":
        return TopK(k)
    if d_sae % k:
        raise ValueError(f"{source.name}: {d_sae} latents cannot be {k} groups of one size, which groupmax takes.")
    return GroupMax(k)


def _sites(source: Source) -> tuple[Site | None, Site | None]:
    """Finds the sites of input and output of the module that the folder is called after; with several seeds, the one above `seed0`. The
    run's config.json, one folder up, names the model.
    """
    folder = source.path.absolute().parent
    if re.fullmatch(r"seed\d+", folder.name):
        folder = folder.parent
    run = source.json(f"{folder.parent}/config.json") or {}
    return of_module(folder.name, str(run.get("model") or "")) or (None, None)


def _fits(source: Source) -> bool:
    names = set(source.state)
    return {"encoder.weight", "W_dec"} <= names and "b_enc" not in names


READERS = (Reader("sparsify", read, _fits, files=(FILE,)),)
