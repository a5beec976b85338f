"""`jaxcirc COMMAND`."""

import argparse
import io
import os
import sys
import traceback

from .._version import __version__
from . import _bench, _convert, _demo, _discover, _doctor, _evaluate, _features, _heads, _jacobian, _self_repair, _steer
from ._common import keep_compilations, quiet_cache


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Exit code 0; 1 if a check of `doctor` fails; 2, with one line that says what to do, for bad input."""
    parser = argparse.ArgumentParser(
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
        _heads,
        _self_repair,
        _doctor,
        _bench,
    ):
        command.add(subparsers)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal or pipe has no letters for is written as an escape
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = parser.parse_args(argv)
    keep_compilations()
    # transformers' advice that PyTorch is missing looks like an error, and tokenizers need none.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        with quiet_cache():
            return arguments.command(arguments)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("jaxcirc: stopped.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        if arguments.traceback:
            traceback.print_exc()
        print(f"jaxcirc: {_one_line(error)}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}. Nothing was written." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())
