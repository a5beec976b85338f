"""Ctrl-C and SIGTERM, for the command: the process leaves at once, and leaves nothing half-written behind.

Python's own way, an exception wherever the program happens to be, does not hold here: raised inside a callback, as JAX has one for garbage
collection, it is printed and forgotten; a long compilation delays it; and unwinding ends in the teardown of an interpreter whose compiler
threads are still at work. So nothing is raised: what must not stay behind is removed, one line is written, and the process is gone.

Only a process that *is* the command does this. Where the library is used, and where `jaxcirc.cli.main` is called with arguments by another
program, signals mean what they mean there.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


PATIENCE = 0.5  # seconds in which the main thread may come to the handler; it may be in a compilation, which takes as long as it takes
DEADLINE = 3.0  # seconds after which the process is gone whatever else there is to do

last_things: list[Callable[[], object]] = []
"""What is done before leaving, in whichever thread, with the main thread halted or deep in a compiled function."""

_leaving = threading.Lock()
_leader: int | None = None
_wakeup: socket.socket | None = None


def hold() -> None:
    """From now on SIGINT and SIGTERM end the process: 130 and 143. A signal that is ignored, as behind nohup, stays ignored."""
    global _wakeup
    if _wakeup is not None or threading.current_thread() is not threading.main_thread():
        return
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    ours = [number for number, default in defaults.items() if signal.getsignal(number) == default]
    read, _wakeup = socket.socketpair()
    _wakeup.setblocking(False)
    # Written to by the signal itself, so that it is heard while the main thread is far from any handler.
    signal.set_wakeup_fd(_wakeup.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), name="signals", daemon=True).start()
    for number in ours:
        signal.signal(number, lambda number, _: _leave(number))


def _is_command() -> bool:
    """Whether this process was started as `jaxcirc …` or `python -m jaxcirc …`."""
    name, started = (getattr(sys, "argv", None) or [""])[0], sys.orig_argv
    if name == "-m":  # until the package is imported, Python has the module's name in orig_argv only
        return "-mjaxcirc" in started or ("-m", "jaxcirc") in itertools.pairwise(started)
    return Path(name).stem == "jaxcirc"


def settle() -> None:
    """The result is delivered: a signal that comes now has nothing to stop, and must not disturb the interpreter's end."""
    if _wakeup is not None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def halt_if_leaving() -> None:
    """Does not return once the process is leaving: what then goes wrong, since files are gone, is no error to tell."""
    if _leader not in (None, threading.get_ident()):
        time.sleep(2 * DEADLINE)


def say(text: bytes) -> None:
    """Writes to standard error, whatever Python's own buffer of it is just doing."""
    os.write(2, text)


def _watch(read: socket.socket) -> None:
    while (number := read.recv(1)[0]) not in (signal.SIGINT, signal.SIGTERM):
        pass  # another signal, for which somebody else has a handler
    latest = threading.Timer(DEADLINE, os._exit, [128 + number])
    latest.daemon = True
    latest.start()
    time.sleep(PATIENCE)
    _leave(number)


def _leave(number: int) -> None:
    global _leader
    if _leader == threading.get_ident():  # another signal, while the first one's last things are being done
        return
    with _leaving:  # never given back: whoever comes second waits for the end
        _leader = threading.get_ident()
        for last in (lambda: say(b"jaxcirc: stopped.\n"), *last_things):
            with contextlib.suppress(Exception):  # the others are still to be done
                last()
        os._exit(128 + number)


if _is_command():
    hold()  # here and not in `main`: the imports before it take a second, in which people lose patience too
