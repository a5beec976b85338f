"""Where the files of dictionaries are: on this machine or on the Hugging Face Hub, and which of a folder's files are some."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from ..._checks import check_path
from .._hub import patient
from .._read import contents
from ._source import SUFFIXES


CHECKPOINTS = "checkpoints"  # a folder of states from the midst of a training; what describes them is one folder up
# What training leaves beside a dictionary, and what is none.
BESIDE = (
    "model.safetensors",
    "pytorch_model.bin",
    "sparsity.safetensors",
    "state.pt",
    "trainer_state.pt",
    "activations_store_state.safetensors",
    "factors.safetensors",
    "frequencies.pt",
    "optimizer.pt",
)
# The files that are a dictionary whatever else lies in their folder, in the order in which they are looked for.
NAMED = (
    "sae_weights.safetensors",
    "sae.safetensors",
    "ae.pt",
    "ae.safetensors",
    "params.npz",
    "params.safetensors",
    f"{CHECKPOINTS}/final.safetensors",
)
_CONFIGURATIONS = (
    "cfg.json",
    "config.json",
    "activation_scaler.json",
    "hyperparams.json",
    "config.yaml",
    "wandb-config.yaml",
    "wanb-config.yaml",
    "conf.yaml",
)
_TRAINING = re.compile(r"(optimizer|lr_scheduler)_\d+\.pt|rank_\d+_state\.pt")
_HUB = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(:(?P<inside>.+))?")


def find(path_or_id: str | Path, revision: str | None, *, tree: str | None = None) -> tuple[Path, str]:
    """Finds the local file or folder, downloaded if it is a Hub id `repo/name` or `repo/name:inside`; and the Hub id, or "". `tree`: not
    one dictionary, but the whole tree below it, as far as its paths match this pattern.
    """
    path = check_path("load_sae: path_or_id", path_or_id).expanduser()
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"{path} is on this machine, and revision={revision!r} is for a Hub id. Leave one of the two out."
            )
        return path, ""
    match = _HUB.fullmatch(str(path_or_id))
    if match is None:
        raise ValueError(
            f"{path} does not exist, and is not a Hub id: those are written repo/name or repo/name:folder."
        )
    return _download(match["repo"], match["inside"], revision, tree), match["repo"]


def is_hub_id(path_or_id: str | Path) -> bool:
    """Says whether it is written like one: `repo/name` or `repo/name:inside`."""
    return _HUB.fullmatch(str(path_or_id)) is not None


def _download(repository: str, inside: str | None, revision: str | None, tree: str | None) -> Path:
    import huggingface_hub

    if tree is not None:
        start = "" if inside is None else f"{inside.rstrip('/')}/"
        chosen = [f"*{suffix}" for suffix in SUFFIXES] if tree == "*" else [tree]
        wanted = [start + pattern for pattern in (*chosen, "*.json", "*.yaml")]
    elif inside is None:
        wanted = [*NAMED, *_CONFIGURATIONS]
    else:  # a file and the configurations beside it, or a folder, whose name may end in .pt too
        folder, stem = inside.rpartition("/")[0], inside.rpartition(".")[0]
        folders = [folder, folder.rpartition("/")[0]] if folder.rpartition("/")[2] == CHECKPOINTS else [folder]
        beside = [f"{each}/{name}".lstrip("/") for each in folders for name in _CONFIGURATIONS]
        wanted = [inside, f"{inside.rstrip('/')}/*", f"{stem}_cfg.json", *beside]
    try:
        with patient():
            root = Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # no network, no such repository, no such revision
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{repository} is no file or folder here, and could not be had from the Hugging Face Hub: {first} Check the name, the "
            "revision and the network; a local path works without any."
        ) from None
    place = root if inside is None else root / inside
    if not place.exists():
        raise ValueError(f"The Hub repository {repository} holds no {inside!r}.")
    return place


def dictionary_file(path: Path, formats: Collection[str]) -> Path:
    """Finds the file of tensors that `path` is, or the one in the folder `path`. `formats`: those that are read, for the message."""
    if path.is_file() and path.name not in _CONFIGURATIONS:
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"{path} is no dictionary: expected a file of tensors ({', '.join(SUFFIXES)}) in one of the formats {', '.join(formats)}."
            )
        return path
    folder = path if path.is_dir() else path.parent
    for name in NAMED:
        if (folder / name).is_file():
            return folder / name
    files = tensor_files(sorted(folder.iterdir()))
    if len(files) != 1:
        have = f"there are {len(files)}: name one" if files else "there is none"
        below = [file.relative_to(folder) for name in NAMED for file in sorted(folder.glob(f"*/**/{name}"))]
        deeper = f" jc.load_saes reads a whole tree, and there is {below[0]} below." if below else ""
        if (folder / "config.yaml").is_file():
            deeper = (
                " jc.load_saes reads the set that config.yaml is of, jc.load_cross_layer_transcoder a cross-layer one."
            )
        raise ValueError(
            f"{folder}: expected one dictionary, {', '.join(NAMED)} or one other file of tensors ({', '.join(SUFFIXES)}), and {have}. "
            f"{contents(folder)}{deeper} The formats that are read are {', '.join(formats)}."
        )
    return files[0]


def tensor_files(paths: Sequence[Path]) -> list[Path]:
    """Chooses those of `paths` that may be dictionaries."""
    return [
        path
        for path in paths
        if path.suffix in SUFFIXES
        and path.name not in BESIDE
        and _TRAINING.fullmatch(path.name) is None
        and path.is_file()
    ]
