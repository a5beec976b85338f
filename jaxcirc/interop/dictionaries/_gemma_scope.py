"""Gemma Scope: JumpReLU autoencoders and transcoders of Gemma 2 (`params.npz`) and Gemma 3 (`params.safetensors` with config.json).

`h = x W_enc + b_enc`, `acts = h 1[h > threshold]`, `out = acts W_dec + b_dec`, and `x affine_skip_connection` more where there is one;
nothing is subtracted from `x`. Those of Gemma 2's embeddings were trained on the rows as they are stored, which the model multiplies by
sqrt(d_model): they are rescaled to what it reads, the latents staying the same. Reference: Lieberum et al. 2024, arXiv 2408.05147.
"""

import re

import numpy as np

from ..._sites import Kind, Site
from ...saes import AbstractDictionary, JumpReLU, SAE, Transcoder
from ._hooks import of_hf_hook, of_listed
from ._parts import scale_input
from ._reader import Reader
from ._sites import agreed
from ._source import Source
from ._tensors import checked, listed, Table


TENSORS: Table = {
    "W_enc": "d_in d_sae",
    "W_dec": "d_sae d_out",
    "b_enc": "d_sae",
    "b_dec": "d_out",
    "threshold": "d_sae",
    "affine_skip_connection": "d_in d_out",
}
_OPTIONAL = ("affine_skip_connection",)
_SPELT = {"w_enc": "W_enc", "w_dec": "W_dec"}
_WIDTHS = {
    **{f"{n}k": n * 1024 for n in (1, 2, 4, 8, 16, 32)},
    **{"65k": 2**16, "131k": 2**17, "262k": 2**18, "524k": 2**19, "1m": 2**20},
}

# The values that a release is of, by the end of its repository's name: where it reads and what it reconstructs.
_RELEASES: dict[str, tuple[Kind, Kind]] = {
    "res": (Kind.RESID_POST, Kind.RESID_POST),
    "att": (Kind.Z, Kind.Z),
    "mlp": (Kind.MLP_OUT, Kind.MLP_OUT),
    "transcoders": (Kind.LN2_NORMALIZED, Kind.MLP_OUT),
}
_RELEASE = re.compile(r"gemma-scope-[\w.]+-(?:pt|it)-(\w+)(?=/|$)")
_PLACE = re.compile(r"(?:layer_(\d+)|(embedding))/width_(\w+)/")
# The same for Gemma Scope 2, by its folders.
_FOLDERS: dict[str, tuple[Kind, Kind]] = {
    "resid_post": (Kind.RESID_POST, Kind.RESID_POST),
    "attn_out": (Kind.Z, Kind.Z),
    "mlp_out": (Kind.MLP_OUT, Kind.MLP_OUT),
    "transcoder": (Kind.MLP_IN, Kind.MLP_OUT),
}
_FOLDER = re.compile(r"/(\w+?)(?:_all)?/layer_(\d+)_width_(\w+?)_l0_\w+/[^/]+$")

Place = tuple[Site | None, Site | None, int | None]  # where it reads, what it reconstructs, how many latents it has


def read(source: Source, *, reads: Site | str | None = None) -> AbstractDictionary:
    """Reads a dictionary of Gemma Scope, `params.npz`.

    **Arguments:** - `reads`: where a transcoder reads, if its path does not say it. Without, what is loaded for a site is its SAE.
    """
    named_in, named_out, width = _place(source)
    return _read(source, reads, (named_in, named_out, width), claims="its path", config_skips=False)


def read_2(source: Source, *, reads: Site | str | None = None) -> AbstractDictionary:
    """Reads a dictionary of Gemma Scope 2, `params.safetensors`, by config.json or, where that is missing, by its path.

    **Arguments:** - `reads`: where a transcoder reads, if neither says it.
    """
    config = source.json("config.json")
    if config is None:
        return _read(source, reads, _folder(source), claims="its path", config_skips=None)
    architecture, kind = config.get("architecture", "jump_relu"), str(config.get("type") or "")
    if architecture != "jump_relu":
        raise ValueError(f"{source.name}: architecture {architecture!r} is not supported. Supported is jump_relu.")
    if kind in ("clt", "crosscoder"):
        raise ValueError(f"{source.name}: config.json says that it is a {kind}. {_elsewhere(kind)}")
    named_in = of_hf_hook(config.get("hf_hook_point_in"), source.name, "hf_hook_point_in")
    named_out = of_hf_hook(config.get("hf_hook_point_out"), source.name, "hf_hook_point_out") or named_in
    width = config.get("width")
    width = width if isinstance(width, int) else _width(str(width), source) if width else None
    skips = config.get("affine_connection")
    return _read(source, reads, (named_in, named_out, width), claims="config.json", config_skips=skips)


def _elsewhere(kind: str) -> str:
    return "Use jc.load_cross_layer_transcoder." if kind == "clt" else "Crosscoders are not supported."


def _read(
    source: Source, reads: Site | str | None, place: Place, *, claims: str, config_skips: bool | None
) -> AbstractDictionary:
    named_in, named_out, width = place
    state = {_SPELT.get(name, name): value for name, value in source.state.items()}
    if len(getattr(state.get("W_dec"), "shape", ())) == 3:
        raise ValueError(f"{source.name}: its `w_dec` has an axis of layers: it is a CLT. {_elsewhere('clt')}")
    said_in, said_out = of_listed(source.listed, source.name)
    site = agreed([(claims, named_out), ("config.yaml", said_out)], source.site, source.name)
    read_at = agreed(
        [(claims, named_in), ("config.yaml", said_in)], None if reads is None else Site.parse(reads), source.name
    )
    if site is None:
        raise ValueError(
            f"{source.name}: nothing says of which site it is, neither its path (gemma-scope-2b-pt-res/layer_5/width_16k/…) nor a "
            "configuration. Pass site=…, and of a transcoder reads=…."
        )
    tensors, sizes = checked(state, TENSORS, source, optional=_OPTIONAL, sizes={"d_sae": width})
    skips = "affine_skip_connection" in tensors
    if config_skips is not None and bool(config_skips) != skips:
        raise ValueError(
            f"{source.name}: config.json says affine_connection = {config_skips}, and the file holds "
            f"{'an' if skips else 'no'} `affine_skip_connection`. Do the two belong together?"
        )
    parts = {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if site.kind == Kind.EMBED:
        parts = scale_input(parts, sizes["d_in"] ** -0.5)
    arrays = source.leaves(**parts)
    activation, origin = JumpReLU(source.leaf(tensors["threshold"])), f"{source.name} (Gemma Scope)"
    if read_at in (None, site) and not skips:
        _check_square(sizes, source)
        return SAE(**arrays, activation=activation, site=site, processing=(), centred=False, origin=origin)
    return Transcoder(
        **arrays,
        activation=activation,
        reads=site if read_at is None else read_at,
        site=site,
        processing=(),  # trained on the modules of the model as it is
        W_skip=source.leaf(np.asarray(tensors["affine_skip_connection"])) if skips else None,
        origin=origin,
    )


def _check_square(sizes: dict[str, int], source: Source) -> None:
    if sizes["d_in"] != sizes["d_out"]:
        raise ValueError(
            f"{source.name} maps {sizes['d_in']} numbers to {sizes['d_out']}: a transcoder. Say its sites: reads=…, site=…."
        )


def _place(source: Source) -> Place:
    """Reads site and width off a path of Gemma Scope, `…/gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_71/params.npz`."""
    inside, releases = _PLACE.search(source.place), _RELEASE.findall(source.place)
    if inside is None or not releases:
        return None, None, None
    if releases[-1] not in _RELEASES:
        raise ValueError(
            f"{source.name}: no release of Gemma Scope is known that ends in {releases[-1]!r}. Known are {listed(_RELEASES)}. Pass "
            "site=…, and of a transcoder reads=…."
        )
    width = _width(inside[3], source)
    if inside[2] is not None:
        return Site(None, Kind.EMBED), Site(None, Kind.EMBED), width
    read_kind, kind = _RELEASES[releases[-1]]
    return Site(int(inside[1]), read_kind), Site(int(inside[1]), kind), width


def _folder(source: Source) -> Place:
    """Reads them off a path of Gemma Scope 2, `…/transcoder_all/layer_3_width_16k_l0_small/params.safetensors`."""
    match = _FOLDER.search(source.place)
    if match is None or match[1] not in _FOLDERS:
        return None, None, None
    read_kind, kind = _FOLDERS[match[1]]
    return Site(int(match[2]), read_kind), Site(int(match[2]), kind), _width(match[3], source)


def _width(word: str, source: Source) -> int:
    if word not in _WIDTHS:
        raise ValueError(f"{source.name}: its width is {word!r}; expected one of {', '.join(_WIDTHS)}.")
    return _WIDTHS[word]


def _names(source: Source) -> set[str]:
    return {_SPELT.get(name, name) for name in source.state}


READERS = (
    Reader(
        "gemma_scope",
        read,
        lambda source: source.path.suffix == ".npz" and set(TENSORS) - set(_OPTIONAL) == _names(source),
        files=("params.npz",),
    ),
    Reader(
        "gemma_scope_2",
        read_2,
        lambda source: {"w_enc", "w_dec", "threshold"} <= set(source.state) and source.path.suffix != ".npz",
        files=("params.safetensors",),
    ),
)
