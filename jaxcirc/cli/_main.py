"""`jaxcirc COMMAND`."""

import argparse
import io
import os
import re
import sys
import traceback
from typing import NoReturn

from .. import _stop
from .._version import __version__
from . import (
    _attribute,
    _bench,
    _circuit_curve,
    _convert,
    _demo,
    _discover,
    _doctor,
    _edges,
    _evaluate,
    _feature,
    _features,
    _generate,
    _graph,
    _heads,
    _jacobian,
    _lens,
    _patch,
    _path_patch,
    _scrub,
    _self_repair,
    _steer,
)
from ._language import in_options
from ._screen import keep_compilations, leave_cleanly, notes, quiet_cache


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Exit code 0; 1 if a check of `doctor` fails; 2, with one line that says what to do, for bad input; 130 if it was
    stopped.

    Without `argv` the process is the command, and Ctrl-C ends it at once, with nothing half-written left. With `argv` signals are the
    caller's.
    """
    if argv is not None:
        return _run(argv)
    _stop.hold()
    leave_cleanly()
    try:
        return _run(sys.argv[1:])
    finally:
        _stop.settle()


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong with the command line in one line, as all else is told."""

    def error(self, message: str) -> NoReturn:
        own = re.sub(r"^argument ([^:]*): (?=\1\b)", "", message)  # a check of ours names the option itself
        if own != message:
            raise ValueError(own)
        raise ValueError(f"{message.removeprefix('argument ')}. `{self.prog} --help` lists what there is.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="jaxcirc",
        description="Jacobians, edges and circuits of transformers in JAX.",
        epilog="example: jaxcirc demo",
    )
    parser.add_argument("--version", action="version", version=f"jaxcirc {__version__}")
    parser.add_argument("--traceback", action="store_true", help="on an error, say where it came from")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (
        _demo,
        _discover,
        _evaluate,
        _steer,
        _convert,
        _jacobian,
        _features,
        _feature,
        _generate,
        _heads,
        _patch,
        _path_patch,
        _edges,
        _graph,
        _circuit_curve,
        _lens,
        _scrub,
        _attribute,
        _self_repair,
        _doctor,
        _bench,
    ):
        command.add(subparsers)
    return parser


def _run(argv: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal or pipe has no letters for is written as an escape
            stream.reconfigure(errors="backslashreplace")
    keep_compilations()
    # transformers' advice that PyTorch is missing looks like an error, and tokenizers need none.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    arguments = argparse.Namespace()
    say = lambda text: in_options(text, arguments)
    try:
        _parser().parse_args(argv, arguments)
        with notes(say), quiet_cache():
            return arguments.command(arguments)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("jaxcirc: stopped.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        _stop.halt_if_leaving()
        if getattr(arguments, "traceback", False):
            traceback.print_exc()
        print(f"jaxcirc: {say(_one_line(error))}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}. Nothing was written." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())
