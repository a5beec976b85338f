"""The process around a command: what reaches the screen, the compilation cache, and how it ends when it is stopped."""

import contextlib
import os
import re
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from .. import _stop
from .._files import abandon


_silent = False


@contextmanager
def silence(asked: bool) -> Iterator[None]:
    """Says nothing on standard error but errors, if it is asked for: no notes and no progress."""
    global _silent
    before, _silent = _silent, asked
    try:
        yield
    finally:
        _silent = before


def silent() -> bool:
    """Whether notes and progress are left out."""
    return _silent


def note(text: str) -> None:
    """Says on standard error, where progress is shown too, how what was given is understood; results alone go to standard output."""
    if not _silent:
        print(text, file=sys.stderr)


def keep_compilations() -> None:
    """Keeps compiled programs on disk between commands, unless JAX was told where, or nothing can be written there."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcirc" / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return
        if not os.access(folder, os.W_OK):
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def kept_compilations() -> tuple[Path | None, int, int]:
    """Where compiled programs are kept, `None` if they are not; how many there are, and of how many bytes."""
    folder = jax.config.values["jax_compilation_cache_dir"]
    if not folder or not jax.config.values["jax_enable_compilation_cache"]:
        return None, 0, 0
    sizes = []
    for entry in os.scandir(folder) if os.path.isdir(folder) else []:
        with contextlib.suppress(OSError):  # another process may just have replaced it
            sizes.append(entry.stat().st_size if entry.name.endswith("-cache") else 0)
    return Path(folder), sum(size > 0 for size in sizes), sum(sizes)


@contextmanager
def quiet_cache() -> Iterator[None]:
    """Keeps one message of XLA's off standard error, and lets all else through.

    On some CPUs XLA logs two long lines, as errors, for every program that it loads from the compilation cache: that the program was
    compiled for `prefer-no-gather`, a preference which it set itself and which the CPU does not list as a feature.
    """
    sys.stderr.flush()
    screen, (out, into) = os.dup(2), os.pipe()
    os.dup2(into, 2)
    os.close(into)
    copied = _Copied(screen)
    copying = threading.Thread(target=copied.copy, args=(out,), daemon=True)
    copying.start()
    direct, _stop.say = _stop.say, copied.say
    try:
        yield
    finally:
        sys.stderr.flush()
        _stop.say = direct
        os.dup2(screen, 2)  # closes the pipe's last end, and so ends the copying
        copying.join()
        os.close(out)
        os.close(screen)


class _Copied:
    """What is copied to the screen, and whether a line has been begun there."""

    def __init__(self, screen: int):
        self.screen, self.ended = screen, True

    def copy(self, out: int) -> None:
        begun = b""
        while chunk := os.read(out, 65536):
            *lines, begun = re.split(rb"(?<=[\r\n])", begun + chunk)  # a bar ends its lines by a carriage return
            if not begun.startswith(
                b"E"
            ):  # not the beginning of a logged error, so it need not wait for the line's end
                lines, begun = [*lines, begun], b""
            self._write(b"".join(line for line in lines if b"cpu_aot_loader.cc" not in line))
        self._write(begun)

    def say(self, text: bytes) -> None:
        """Speaks for a process that leaves at once: past the pipe, of which nobody may read the end, and on a line of its own."""
        self._write(text if self.ended else b"\n" + text)

    def _write(self, text: bytes) -> None:
        os.write(self.screen, text)
        self.ended = text.endswith(b"\n") if text else self.ended


@contextmanager
def notes(say: Callable[[str], str]) -> Iterator[None]:
    """Shows warnings as lines of the command, in the words that `say` makes of them, and not as lines of Python files."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(message, category, filename, lineno, file=None, line=None):
            if issubclass(category, UserWarning) and file is None:
                note(f"jaxcirc: note: {say(str(message))}")
            else:
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def leave_cleanly() -> None:
    """Says what is done if the process is stopped."""
    _stop.last_things[:] = [abandon, _forget_begun_programs, sys.stdout.flush]


def _forget_begun_programs() -> None:
    """Removes the newest programs of the compilation cache: JAX writes them in place, so one may be there in half, and would never be
    written again.
    """
    folder = jax.config.values["jax_compilation_cache_dir"]
    recent = time.time() - 2
    for entry in os.scandir(folder) if folder and os.path.isdir(folder) else []:
        if entry.name.endswith("-cache") and entry.stat().st_mtime > recent:
            with contextlib.suppress(OSError):
                os.unlink(entry)
