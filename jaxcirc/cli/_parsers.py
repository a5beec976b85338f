"""All parsers of the command line: what each of them has, and completion of their options by the shell."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any


SHELLS = ("bash", "zsh", "tcsh")
FOLDERS = ("FOLDER", "MODEL", "DICTIONARIES", "TOKENIZER")  # metavars of what is a folder, or may be one


def parsers(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The parser and those of its commands, by name, parts such as `lens fit` too."""
    yield name, parser
    for action in parser._actions:
        if action.nargs == argparse.PARSER:
            for word, each in dict(action.choices or {}).items():
                yield from parsers(each, f"{name} {word}".strip())


def is_command(parser: argparse.ArgumentParser) -> bool:
    """Whether it does something itself, and is not the parent of parts."""
    return all(action.nargs != argparse.PARSER for action in parser._actions)


def add_everywhere(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command. What stands before the command's name as well as after it is in the namespace only where it is
    given.

    Examples stand in the help as lines of their own, however long, to be copied.
    """
    for _, each in parsers(parser):
        each.formatter_class = argparse.RawDescriptionHelpFormatter
        each.description = textwrap.fill(each.description or "", shutil.get_terminal_size().columns - 2)
        each.epilog = re.sub(r"\s*\bexample: ", "\n\nexample:\n  ", each.epilog or "").strip()
        group = each.add_argument_group("on every command")
        if is_command(each):
            add_json_option(group)
        given: dict[str, Any] = {"action": "store_true", "default": argparse.SUPPRESS}
        group.add_argument("--quiet", help="no notes, no progress and no times on standard error", **given)
        group.add_argument("--traceback", help="on an error, say where it came from", **given)


def add_json_option(parser: argparse._ActionsContainer) -> None:
    """Adds `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


class PrintCompletion(argparse.Action):
    """Prints the shell's script, by shtab, and ends."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        import shtab

        for _, each in parsers(parser):
            for action in each._actions:
                # What has no option's name is a file, in every command.
                positional = not action.option_strings and action.nargs != argparse.PARSER
                if action.metavar == "FILE" or positional:
                    action.complete = shtab.FILE  # pyright: ignore[reportAttributeAccessIssue]  # where shtab looks
                elif action.metavar in FOLDERS:
                    action.complete = shtab.DIRECTORY  # pyright: ignore[reportAttributeAccessIssue]
        print(shtab.complete(parser, str(values)))
        parser.exit(0)
