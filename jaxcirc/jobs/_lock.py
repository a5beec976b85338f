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
    with contextlib.ExitStack() as held:
        with briefly_alone(out):
            _hold_folder(held, out, part)
        if part.of > 1:
            _hold_part(held, out, out / f".lock-{part.number}-of-{part.of}")
        yield


@contextlib.contextmanager
def briefly_alone(out: Path) -> Iterator[None]:
    """Waits for others that write what all of them share, and holds them off."""
    with (out / ".turn").open("a+b") as file:
        lock(file, "alone", wait=True)
        yield


def _hold_folder(held: contextlib.ExitStack, out: Path, part: Part) -> None:
    """Whoever is first says into how many parts the work is divided; all others have to divide it in the same way, or two would write one
    shard.
    """
    file = held.enter_context((out / ".lock").open("a+b"))
    try:
        lock(file, "alone", wait=False)
    except OSError:
        try:
            lock(file, "shared", wait=False)
        except OSError:
            raise _at_work(out, file) from None
        if _said(file).get("of") != part.of:
            raise _at_work(out, file, "Divide it as they do, wait for its end,") from None
    else:
        _say(file, {"of": part.of} if part.of > 1 else _this_process())
        if part.of > 1:
            lock(file, "shared", wait=False)


def _hold_part(held: contextlib.ExitStack, out: Path, path: Path) -> None:
    file = held.enter_context(path.open("a+b"))
    try:
        lock(file, "alone", wait=False)
    except OSError:
        raise _at_work(out, file) from None
    _say(file, _this_process())


def _this_process() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _say(file: Any, what: dict[str, Any]) -> None:
    """Writes down who has a lock, for whoever is refused."""
    file.truncate(0)
    file.write(json.dumps(what).encode())
    file.flush()


def _said(file: Any) -> dict[str, Any]:
    try:
        file.seek(0)
        said = json.loads(file.read())
    except (OSError, ValueError):  # of one that is just beginning
        return {}
    return said if isinstance(said, dict) else {}


def _at_work(out: Path, file: Any, remedy: str = "Wait for its end,") -> ValueError:
    match _said(file):
        case {"process": process, "host": host, "since": int() | float() as since}:
            who = f" (process {process} on {host}, since {time.ctime(since)})"
        case {"of": int() as parts}:
            who = f", by {parts} processes, each with a part"
        case _:
            who = ""
    return ValueError(f"{out}: another run is at work there{who}. {remedy} or choose another folder.")
