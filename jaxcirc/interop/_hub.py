"""Checkpoints of the Hugging Face Hub: only the configuration and one format of weights are downloaded."""

import re
from pathlib import Path

from ._read import FORMATS, shard_files
from ._shipped import SHIPPED


# Names that papers and other libraries use, and one that is misspelt on the Hub.
_ALIASES = {
    "gpt2-small": "gpt2",
    "roneneldan/TinyStories-Instruct-1Layer-21M": "roneneldan/TinyStories-Instuct-1Layer-21M",
}
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class Unreachable(ValueError):
    """The Hub cannot be asked, and the file is not in the cache: there may or may not be such a file."""


def download(name: str, revision: str | None) -> Path:
    """The cached folder of a Hub checkpoint: its configuration and its weights, safetensors before PyTorch before Flax."""
    repo = repo_id(name)
    config = fetch(repo, "config.json", revision)
    if config is None:
        raise ValueError(f"{repo} has no config.json, so it is not a transformers model.")
    unreachable = None
    for file in [name + suffix for name in FORMATS for suffix in ("", ".index.json")]:
        try:
            found = fetch(repo, file, revision)
        except Unreachable as error:  # without network a cached checkpoint is in one format only
            unreachable = error
            continue
        if found is not None:
            shards = set(shard_files(found).values()) if file.endswith(".index.json") else set()
            for shard in sorted(shards):
                fetch(repo, shard, revision)
            return config.parent
    raise unreachable or ValueError(
        f"{repo} holds no weights that can be read; expected one of {', '.join(FORMATS)}, or an index of shards."
    )


def repo_id(name: str) -> str:
    """The Hub's id for `name`; `ValueError` if it cannot be one, so that a mistyped path is not asked of the Hub."""
    if not _ID.fullmatch(name) or name[0] in "./":
        raise ValueError(
            f"There is nothing at {name!r}. Expected a folder with config.json and weights, a Hub id such as 'gpt2', or a shipped model: "
            f"{', '.join(SHIPPED)}."
        )
    return _ALIASES.get(name, name)


def fetch(repo: str, file: str, revision: str | None) -> Path | None:
    """The cached path of one file of a repository, `None` if the repository has no such file."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:  # it is an EntryNotFoundError too
        raise Unreachable(
            f"{repo} is not in the cache of Hub files, and the Hub cannot be reached ({_first_line(error)})."
        ) from None
    except errors.EntryNotFoundError:
        return None
    except errors.RevisionNotFoundError:
        raise ValueError(f"The Hub's {repo} has no revision {revision!r}.") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{repo!r} is neither a folder, nor a shipped model ({', '.join(SHIPPED)}), nor a repository of the Hub that you may read."
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:
        raise ValueError(f"{repo} could not be downloaded from the Hub ({_first_line(error)}).") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
