"""Sets of transcoders as circuit-tracer reads them: a folder with `config.yaml` and one file a layer, or a list of where the layers lie.

`acts = activation(x W_enc + b_enc)`, `out = acts W_dec + b_dec`, and `x W_skip` more where there is one. Reference:
github.com/safety-research/circuit-tracer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlparse

from ..._sites import Kind, Site
from ...saes import AbstractActivation, JumpReLU, ReLU, TopK, Transcoder
from .._read import contents
from ._find import find
from ._hooks import of_listed
from ._reader import Reader
from ._releases import k_of
from ._sites import agreed
from ._source import Listed, Source
from ._tensors import checked, Table


CONFIG = "config.yaml"
THRESHOLD = "activation_function.threshold"
TENSORS: Table = {
    "W_enc": "d_sae d_in",
    "W_dec": "d_sae d_out",
    "b_enc": "d_sae",
    "b_dec": "d_out",
    "W_skip": "d_out d_in",
    THRESHOLD: "d_sae",
    "k": "",
}
_OPTIONAL = ("W_skip", THRESHOLD, "k")
_FILE = re.compile(r"layer_(\d+)\.safetensors")
# What the files of mwhanna's transcoders of Qwen3 have beside them, where there is no config.yaml: its name is spelt in two ways.
_QWEN3 = ("wandb-config.yaml", "wanb-config.yaml")


def read(
    source: Source, *, reads: Site | str | None = None, activation: str | None = None, k: int | None = None
) -> Transcoder:
    """Reads a transcoder of a set, `layer_5.safetensors`. Its config.yaml says where it reads and writes, and with which activation.

    **Arguments:** - `reads`: in place of what config.yaml says. - `activation` (`"relu"`, `"topk"`), `k`: for a file without config.yaml.
    Without either it is a JumpReLU where the file has thresholds, else a ReLU.
    """
    member = _member(source)
    read_at, site = _sites(source, member)
    read_at = agreed([(CONFIG, read_at)], None if reads is None else Site.parse(reads), source.name)
    site = agreed([(CONFIG, site)], source.site, source.name)
    if read_at is None or site is None:
        raise ValueError(
            f"{source.name}: nothing says where it reads and what it predicts: there is no {CONFIG} beside it. Put it there, or pass "
            f"reads=… and site=…. {contents(source.path.parent)}"
        )
    config: Mapping[str, object] = {} if member is None else member.config
    tensors, _ = checked(source.state, TENSORS, source, optional=_OPTIONAL)
    return Transcoder(
        **source.leaves(tensors["W_enc"].T, tensors["b_enc"], tensors["W_dec"], tensors["b_dec"]),
        activation=source.activation(_activation(tensors, config, activation, k, source)),
        reads=read_at,
        site=site,
        processing=(),  # on the weights as they are
        W_skip=source.leaf(tensors["W_skip"].T) if "W_skip" in tensors else None,
        origin=f"{source.name} (circuit-tracer)",
    )


def _member(source: Source) -> Listed | None:
    """Says which layer of which set the file is: of the list it was found in, or by its name and the config.yaml beside it."""
    match = _FILE.fullmatch(source.path.name)
    if source.listed is not None or match is None:
        return source.listed
    config = source.yaml(CONFIG)
    return None if config is None else Listed(config, int(match[1]))


def _sites(source: Source, member: Listed | None) -> tuple[Site | None, Site | None]:
    match = _FILE.fullmatch(source.path.name)
    if member is None and match is not None and any(source.yaml(name) is not None for name in _QWEN3):
        return Site(int(match[1]), Kind.MLP_IN), Site(int(match[1]), Kind.MLP_OUT)
    return of_listed(member, source.name)


def _activation(
    tensors: Mapping[str, object], config: Mapping[str, object], given: str | None, k: int | None, source: Source
) -> AbstractActivation:
    name = given or config.get("activation")
    if name is None and THRESHOLD in tensors:
        return JumpReLU(source.leaf(tensors[THRESHOLD]))  # pyright: ignore[reportArgumentType]  # `checked` made it an array
    if name in (None, "relu"):
        return ReLU()
    if name != "topk":
        raise ValueError(
            f"{source.name}: activation {name!r} of {CONFIG} is not supported. Supported are relu and topk."
        )
    number = k if k is not None else config.get("k") or k_of(source.repository)
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{source.name}: activation topk without its `k` in {CONFIG} (got {number!r}). Pass k=….")
    return TopK(number, rectified=False)


def is_set(config: Mapping[str, object]) -> bool:
    """Says whether a config.yaml is one of circuit-tracer's."""
    return "feature_input_hook" in config or "model_kind" in config


def members(root: Path, config: dict, repository: str) -> list[Source]:
    """Lists the files of a set in the order of their layers: where config.yaml lists them, or beside it."""
    kind = config.get("model_kind", "transcoder_set")
    if kind == "cross_layer_transcoder":
        raise ValueError(f"{root} is a cross-layer transcoder. Use jc.load_cross_layer_transcoder.")
    if kind != "transcoder_set":
        raise ValueError(
            f"{root / CONFIG}: model_kind {kind!r} is not supported. Supported are transcoder_set and cross_layer_transcoder."
        )
    places = config.get("transcoders")
    if places is None:
        return [Source(path, repository, listed=Listed(config, i)) for i, path in enumerate(_layers(root))]
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise ValueError(f"{root / CONFIG}: `transcoders` must be a list of paths or hf:// addresses, one a layer.")
    found = [_located(place, root, repository) for place in places]
    return [Source(path, name, listed=Listed(config, i)) for i, (path, name) in enumerate(found)]


def _layers(root: Path) -> list[Path]:
    numbers = {int(match[1]) for path in root.iterdir() if (match := _FILE.fullmatch(path.name)) is not None}
    if not numbers:
        raise ValueError(
            f"{root} has a {CONFIG} that lists no transcoders, and no layer_0.safetensors. {contents(root)}"
        )
    if missing := sorted(set(range(max(numbers))) - numbers):
        raise ValueError(
            f"{root}: layer_{missing[0]}.safetensors is missing, and there is one for layer {max(numbers)}. Download it too, or load "
            "single layers with jc.load_sae."
        )
    return [root / f"layer_{i}.safetensors" for i in range(len(numbers))]


def _located(place: str, root: Path, repository: str) -> tuple[Path, str]:
    """Finds one file of a list: `hf://org/repo/path?revision=…`, or a path, from the folder of the list if it is not absolute."""
    address = urlparse(place)
    if address.scheme != "hf":
        path = root / place
        if not path.is_file():
            raise ValueError(f"{root / CONFIG} lists {place}, and there is no such file.")
        return path, repository
    name, _, inside = address.path.lstrip("/").partition("/")
    revision = parse_qs(address.query).get("revision", [None])[0]
    return find(f"{address.netloc}/{name}:{inside}", revision)


def _fits(source: Source) -> bool:
    """Tells by its names and which axes are those of the latents; other formats have tensors of the same names, otherwise laid out."""
    names = set(source.state)
    if not {"W_enc", "W_dec", "b_enc", "b_dec"} <= names <= set(TENSORS):
        return False
    d_sae, d_out = (tuple(getattr(source.state[name], "shape", ())) for name in ("b_enc", "b_dec"))
    W_enc, W_dec = (tuple(getattr(source.state[name], "shape", ())) for name in ("W_enc", "W_dec"))
    named = _FILE.fullmatch(source.path.name) is not None
    return (named or THRESHOLD in names or d_sae != d_out) and W_enc[:1] == d_sae and W_dec == d_sae + d_out


READERS = (Reader("circuit_tracer", read, _fits),)
