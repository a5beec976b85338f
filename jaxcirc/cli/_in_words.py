"""What directions say in tokens, in lines and as JSON."""

import argparse
from typing import Any

import numpy as np

from .._tokens import token_text
from ..components import Decoded
from ._options import count


def add_words_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--words`."""
    parser.add_argument(
        "--words",
        type=count("--words", "tokens each vector is read in", least=0),
        default=3,
        metavar="N",
        help="tokens that each vector is read in, of those it raises and of those it lowers (%(default)s)",
    )


def in_words(found: Decoded, most: int, tokenizer: Any) -> list[dict[str, list[tuple[str, float]]]]:
    """Of each direction the tokens whose logits it raises most (`top`) and lowers most (`bottom`), and by how much, the first first."""
    sides = {}
    for name, (ids, values) in (("top", found.top(most)), ("bottom", found.bottom(most))):
        flat = (np.asarray(each).reshape(-1, most) for each in (ids, values))
        sides[name] = [
            [(token_text(tokenizer, token), float(value)) for token, value in zip(*row, strict=True)]
            for row in zip(*flat, strict=True)
        ]
    return [dict(zip(sides, row, strict=True)) for row in zip(*sides.values(), strict=True)]


def listed(words: list[tuple[str, float]]) -> str:
    """Tokens and by how much, in a line."""
    return "  ".join(f"{text!r} {value:+z.3g}" for text, value in words)


def named(words: list[tuple[str, float]]) -> str:
    """Tokens alone, in a line."""
    return " ".join(repr(text) for text, _ in words)
