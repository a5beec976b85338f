"""`jaxcirc COMMAND`."""

import argparse
import io
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from .. import _stop
from .._sites import did_you_mean
from .._version import __version__
from . import (
    _attribute,
    _bench,
    _check_graph,
    _circuit_curve,
    _circuit_roc,
    _circuit_stability,
    _component_edges,
    _convert,
    _decode,
    _demo,
    _direct_effects,
    _discover,
    _doctor,
    _edges,
    _evaluate,
    _explain_edge,
    _feature,
    _features,
    _generate,
    _graph,
    _heads,
    _intervene,
    _jacobian,
    _lens,
    _logit_lens,
    _mean_edges,
    _mean_jacobian,
    _minimality,
    _patch,
    _path_patch,
    _prune,
    _qk_attribution,
    _recovery_curve,
    _scrub,
    _self_repair,
    _spectra,
    _steer,
    _view,
)
from ._common import Subparsers
from ._language import in_options
from ._parsers import add_everywhere, PrintCompletion, SHELLS
from ._screen import keep_compilations, leave_cleanly, note, notes, quiet_cache, silence
from ._timing import begin, clock


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

    given: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]  # which has overloads
        self.given = sys.argv[1:] if args is None else list(args)
        found, left = super().parse_known_args(args, namespace)
        self._refuse_unknown(left)
        return found, left

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        for option in (text.partition("=")[0] for text in given if text.startswith("--") and text != "--"):
            if not any(each.startswith(option) for each in known):
                near = did_you_mean(option, known)
                raise ValueError(
                    f"{option} is no option of {self.prog}. {near} `{self.prog} --help` lists what there is."
                )

    def error(self, message: str) -> NoReturn:
        if message.startswith("the following arguments are required"):
            self._refuse_unknown(self.given)  # what is required may be there, written otherwise
        if unknown := re.match(r"argument COMMAND: (invalid choice: '(.*)') \(", message, re.DOTALL):
            names = next(action.choices for action in self._actions if action.nargs == argparse.PARSER)
            near = did_you_mean(unknown[2], names or ())
            raise ValueError(f"COMMAND: {unknown[1]}. {near} `{self.prog} --help` lists what there is.")
        own = re.sub(r"^argument ([^:]*): (?=\1\b)", "", message)  # a check of ours names the option itself
        if own != message:
            raise ValueError(own)
        raise ValueError(f"{message.removeprefix('argument ')}. `{self.prog} --help` lists what there is.")


# What there is, by what it is for: the order of the help.
GROUPS = {
    "circuits of latents": (_demo, _discover, _evaluate, _recovery_curve, _minimality, _prune, _steer, _convert),
    "layers, heads and MLPs": (_heads, _patch, _direct_effects, _self_repair),
    "edges between heads and MLPs": (
        _component_edges,
        _path_patch,
        _circuit_curve,
        _circuit_stability,
        _circuit_roc,
        _scrub,
    ),
    "one prompt, taken apart": (_jacobian, _spectra, _features, _edges, _lens, _logit_lens),
    "attribution graphs": (_graph, _check_graph, _explain_edge, _qk_attribution, _intervene),
    "to look at": (_view, _feature, _decode, _generate),
    "many prompts": (_attribute, _mean_jacobian, _mean_edges),
    "this machine": (_doctor, _bench),
}


class _Group:
    """Adds commands to the parser, and keeps a line of help for each."""

    def __init__(self, subparsers: Subparsers, lines: list[tuple[str, str]]):
        self.subparsers, self.lines = subparsers, lines

    def add_parser(self, name: str, *, help: str, **given: Any) -> argparse.ArgumentParser:
        self.lines.append((name, help))
        return self.subparsers.add_parser(name, help=help, **given)


class _Jaxcirc(_Parser):
    """The parser of all commands, whose help lists them by purpose."""

    groups: dict[str, list[tuple[str, str]]]

    def format_help(self) -> str:
        wide = 2 + max(len(name) for lines in self.groups.values() for name, _ in lines)
        listed = (
            f"{title}:\n" + "".join(f"  {name:<{wide}}{help}\n" for name, help in lines)
            for title, lines in self.groups.items()
        )
        before = "usage: jaxcirc COMMAND …\n", f"{self.description}\n"
        return "\n".join((*before, *listed, f"{OPTIONS}\n{self.epilog}\n"))


OPTIONS = """options, of which all but the last two may stand behind the command too:
  --help                              this, or what a command is for and takes, with an example
  --quiet                             no notes, no progress and no times on standard error
  --traceback                         on an error, say where it came from
  --version                           the version
  --print-completion bash|zsh|tcsh    a script by which the shell completes commands, options and files
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    whole = _Jaxcirc(
        prog="jaxcirc",
        description="Jacobians, edges and circuits of transformers in JAX.",
        epilog="example: jaxcirc demo",
    )
    whole.add_argument("--version", action="version", version=f"jaxcirc {__version__}")
    whole.add_argument("--print-completion", action=PrintCompletion, choices=SHELLS, default=argparse.SUPPRESS)
    subparsers = whole.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    whole.groups = {title: [] for title in GROUPS}
    for title, commands in GROUPS.items():
        for command in commands:
            command.add(_Group(subparsers, whole.groups[title]))
    add_everywhere(whole)
    return whole


def _run(argv: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal or pipe has no letters for is written as an escape
            stream.reconfigure(errors="backslashreplace")
    keep_compilations()
    arguments = argparse.Namespace(
        quiet=False, traceback="--traceback" in argv
    )  # which is about errors of parsing, too
    say = lambda text: in_options(text, arguments)
    begin()
    try:
        if not argv:
            parser().print_help()
            return 0
        parser().parse_args(argv, arguments)
        with notes(say), quiet_cache(), silence(arguments.quiet):
            status = arguments.command(arguments)
            if clock().loaded is not None:
                note(f"jaxcirc: {clock()}")
            return status
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("jaxcirc: stopped.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        _stop.halt_if_leaving()
        if arguments.traceback:
            traceback.print_exc()
        print(f"jaxcirc: {say(_one_line(error))}", file=sys.stderr)
        return 2


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}. Nothing was written." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())
