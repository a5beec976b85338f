"""One run at a time on a folder of results, or one for each part of the work."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._locks import lock
from ._shards import Part


@contextlib.contextmanager
def locked(out: Path, part: Part) -> Iterator[None]:
    """Holds the folder for one run of all the work, or for one of this part of it, beside other parts.

    **Raises:** `ValueError` that names the process at work, if there is one.
    """
    whole = part.of == 1
    with contextlib.ExitStack() as held:
        _hold(held, out, out / ".lock", shared=not whole)
        if not whole:
            _hold(held, out, out / f".lock-{part.number}-of-{part.of}", shared=False)
        yield


@contextlib.contextmanager
def briefly_alone(out: Path) -> Iterator[None]:
    """Waits for others that write what all of them share, and holds them off."""
    with (out / ".turn").open("a+b") as file:
        lock(file, "alone", wait=True)
        yield


def _hold(held: contextlib.ExitStack, out: Path, path: Path, *, shared: bool) -> None:
    file = held.enter_context(path.open("a+b"))
    try:
        lock(file, "shared" if shared else "alone", wait=False)
    except OSError:
        raise ValueError(
            f"{out}: another run is at work there{_who(file)}. Wait for its end, or choose another folder."
        ) from None
    if not shared:  # for whoever is refused
        file.truncate(0)
        file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode())
        file.flush()


def _who(file: Any) -> str:
    try:
        file.seek(0)
        said = json.loads(file.read())
        return f" (process {said['process']} on {said['host']}, since {time.ctime(said['since'])})"
    except (OSError, ValueError, KeyError, TypeError):  # several, or one that is just beginning
        return ""
