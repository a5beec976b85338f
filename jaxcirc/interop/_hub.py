"""Checkpoints of the Hugging Face Hub: only the configuration and one format of weights are downloaded."""

import contextlib
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from ._read import FORMATS, shard_files
from ._shipped import SHIPPED


# Names that papers and other libraries use, and one that is misspelt on the Hub.
_ALIASES = {
    "gpt2-small": "gpt2",
    "roneneldan/TinyStories-Instruct-1Layer-21M": "roneneldan/TinyStories-Instuct-1Layer-21M",
}
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


PATIENCE = 4.0  # seconds in which the Hub has to answer anything at all
_answers: dict[str, tuple[bool, float]] = {}  # whether an endpoint answered, and until when that is taken for granted


class Unreachable(ValueError):
    """The Hub cannot be asked, and the file is not in the cache: there may or may not be such a file."""


def download(name: str, revision: str | None) -> Path:
    """Downloads a Hub checkpoint into its cached folder: its configuration and its weights, safetensors before PyTorch before Flax."""
    repo, config = repo_id(name), configuration(name, revision)
    unreachable = None
    for file in [name + suffix for name in FORMATS for suffix in ("", ".index.json")]:
        try:
            path = fetch(repo, file, revision)
        except Unreachable as error:  # without network a cached checkpoint is in one format only
            unreachable = error
            continue
        if path is not None:
            shards = set(shard_files(path).values()) if file.endswith(".index.json") else set()
            for shard in sorted(shards):
                fetch(repo, shard, revision)
            return config.parent
    raise unreachable or ValueError(
        f"{repo} holds no weights that can be read; expected one of {', '.join(FORMATS)}, or an index of shards."
    )


def configuration(name: str, revision: str | None) -> Path:
    """Downloads the configuration of a Hub checkpoint, or finds it in the cache. **Raises:** `ValueError` if there is none."""
    config = fetch(repo_id(name), "config.json", revision)
    if config is None:
        raise ValueError(f"{repo_id(name)} has no config.json, so it is not a transformers model.")
    return config


def repo_id(name: str) -> str:
    """Finds the Hub's id for `name`; `ValueError` if it cannot be one, so that a mistyped path is not asked of the Hub."""
    if not _ID.fullmatch(name) or name[0] in "./":
        raise ValueError(
            f"There is nothing at {name!r}. Expected a folder with config.json and weights, a Hub id such as 'gpt2', or a shipped model: "
            f"{', '.join(SHIPPED)}."
        )
    return _ALIASES.get(name, name)


def fetch(repo: str, file: str, revision: str | None) -> Path | None:
    """Downloads one file of a repository, or finds it in the cache; `None` if the repository has no such file."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        with patient():
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except errors.LocalEntryNotFoundError as error:  # it is an EntryNotFoundError too
        raise Unreachable(
            f"{repo!r} is no shipped model ({', '.join(SHIPPED)}) and no folder here; {repo} is not in the cache of Hub files, and the Hub "
            f"cannot be reached ({_first_line(error).partition('. ')[0]})."
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


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Where the Hub is asked. If it cannot be reached its client works offline, from its cache, as `HF_HUB_OFFLINE=1` makes it do: by
    itself it would ask for every file again and again, for half a minute each.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or _answering(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def _answering(endpoint: str) -> bool:
    """Says whether anything is heard of the Hub in time."""
    answer, until = _answers.get(endpoint, (False, 0.0))
    if time.monotonic() > until:
        heard: list[object] = []
        # In a thread, because a name that is looked up has no time limit.
        asking = threading.Thread(target=_ask, args=(endpoint, heard), daemon=True)
        asking.start()
        asking.join(PATIENCE)
        answer = bool(heard)
        _answers[endpoint] = answer, time.monotonic() + 60
    return answer


def _ask(endpoint: str, heard: list[object]) -> None:
    from huggingface_hub.utils import get_session

    with contextlib.suppress(Exception):  # of what kind, depends on the library that the client uses
        heard.append(get_session().head(endpoint, timeout=PATIENCE))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
