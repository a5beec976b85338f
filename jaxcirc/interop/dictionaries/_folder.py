"""Every dictionary of a folder tree, by site."""

import dataclasses
import fnmatch
from collections.abc import Iterable
from pathlib import Path

from jax.typing import DTypeLike

from ..._checks import check_path
from ..._sites import BySite, Site
from ...saes import AbstractDictionary
from .._read import contents
from .._shipped import SHIPPED, shipped_folder
from .._tensors import checked_dtype
from ._circuit_tracer import CONFIG, is_set, members
from ._find import CHECKPOINTS, find, is_hub_id, NAMED, tensor_files
from ._llama_scope import FILE as LLAMA_SCOPE
from ._load import read_source
from ._plain import e2e_prefixes, e2e_site
from ._readers import check_format, READERS
from ._source import read_yaml, Source, SUFFIXES
from ._sparsify import FILE as SPARSIFY


def load_saes(
    folder_or_name: str | Path,
    *,
    format: str = "auto",
    include: str = "*",
    processing: Iterable[str] | None = None,
    dtype: DTypeLike | None = None,
    revision: str | None = None,
    **options: object,
) -> BySite[AbstractDictionary]:
    """Loads every dictionary of a folder tree: SAELens folders, feature-circuits' and dictionary_learning's
    `{embed, attn_out_layer0, mlp_out_layer0, resid_out_layer0, …}/*/ae.pt`, sparsify's `{embed_in, layers.0, layers.0.mlp, …}/` with
    cfg.json and sae.safetensors, circuit-tracer's sets of transcoders with their config.yaml (its list, or layer_0.safetensors and so on),
    or files of another format that say their site.

    **Arguments:**

    - `folder_or_name`: a folder, a Hub id (`repo/name` or `repo/name:folder`), or a shipped model, `"tiny-gpt2"` or `"tiny-gpt-neo"`.
    - `include`: which paths below the folder, as a pattern, where there are several dictionaries for a site: `"*/10_32768/*"`. Of the Hub
      nothing else is downloaded.
    - the rest as `jc.load_sae`.

    **Returns:** `{dictionary.site: dictionary}`, in execution order; names of sites are keys, too.

    **Raises:** `ValueError` if there is none, one does not say its site, or two are for the same site; and as `jc.load_sae`.

    >>> str(next(iter(jc.load_saes("tiny-gpt2"))))
    'blocks.0.hook_resid_pre'
    """
    dtype = None if dtype is None else checked_dtype(dtype)
    check_format(format)
    root, repository = _root(folder_or_name, revision, include)
    by_site: dict[Site, tuple[Path, AbstractDictionary]] = {}
    for source in _all_sources(root, repository, include, dtype):
        path, sae = source.path, read_source(source, format, processing, options)
        if sae.site is None:
            raise ValueError(
                f"{path}: nothing says the site of this dictionary. Load it alone: jc.load_sae(path, site=…)."
            )
        if sae.site in by_site:
            both = f"{_within(by_site[sae.site][0], root)} and {_within(path, root)}"
            raise ValueError(
                f"{root} holds two dictionaries for `{sae.site}`, {both}. Choose with include=…, a pattern of paths."
            )
        by_site[sae.site] = (path, sae)
    if not by_site:
        raise ValueError(
            f"{root} holds no dictionary whose path matches {include!r}. {contents(root)} Dictionaries are {', '.join(NAMED)} or other "
            f"files of tensors ({', '.join(SUFFIXES)}); the formats are {', '.join(READERS)}."
        )
    return BySite((site, by_site[site][1]) for site in sorted(by_site))


def check_saes(folder_or_name: str | Path) -> None:
    """ValueError if `load_saes` could find nothing under this name: for before other work. The Hub is not asked."""
    path = check_path("load_saes: folder_or_name", folder_or_name).expanduser()
    if str(folder_or_name) in SHIPPED or path.is_dir():
        return
    if path.exists():
        raise ValueError(f"{path} is a file, and load_saes reads a folder. Use jc.load_sae.")
    if not is_hub_id(folder_or_name):
        raise ValueError(
            f"There are no dictionaries at {str(folder_or_name)!r}. Expected a folder of them, a Hub id written repo/name or "
            f"repo/name:folder, or a shipped model: {', '.join(SHIPPED)}."
        )


def _root(folder_or_name: str | Path, revision: str | None, include: str) -> tuple[Path, str]:
    if str(folder_or_name) in SHIPPED:
        folder = shipped_folder(str(folder_or_name)) / "saes"
        if not folder.is_dir():
            raise ValueError(f"The shipped model {folder_or_name} has no dictionaries: {folder} is missing.")
        return folder, ""
    check_saes(folder_or_name)
    path, repository = find(folder_or_name, revision, tree=include)
    if not path.is_dir():  # a file of the Hub
        raise ValueError(f"{path} is a file, and load_saes reads a folder. Use jc.load_sae.")
    return path, repository


def _all_sources(root: Path, repository: str, include: str, dtype: DTypeLike | None) -> list[Source]:
    """Lists what is to be read: a set's files as its config.yaml has them, or whatever lies in the tree."""
    config = read_yaml(root / CONFIG) if (root / CONFIG).is_file() else {}
    if is_set(config):
        listed = [dataclasses.replace(source, dtype=dtype) for source in members(root, config, repository)]
        return [source for source in listed if fnmatch.fnmatch(_within(source.path, root), include)]
    return [source for path in _files(root, include) for source in _sources(path, repository, dtype)]


def _within(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _files(root: Path, include: str) -> list[Path]:
    below = {path: path.relative_to(root) for path in tensor_files(sorted(root.rglob("*")))}
    return [
        path for path, name in below.items() if fnmatch.fnmatch(name.as_posix(), include) and not _is_checkpoint(name)
    ]


def _is_checkpoint(path: Path) -> bool:
    """Says whether it is an intermediate state of a training, which belongs to no circuit, or a hidden file. Finished ones of sparsify and
    Llama Scope lie in `checkpoints/` too.
    """
    return (CHECKPOINTS in path.parts[:-1] and path.name not in (SPARSIFY, LLAMA_SCOPE)) or any(
        part.startswith(".") for part in path.parts
    )


def _sources(path: Path, repository: str, dtype: DTypeLike | None) -> list[Source]:
    """One for each dictionary in the file: those of end-to-end training come several to a file."""
    source = Source(path, repository, None, dtype)
    prefixes = e2e_prefixes(source.state)
    if len(prefixes) < 2:
        return [source]
    return [Source(path, repository, e2e_site(prefix, source.name), dtype) for prefix in prefixes]
