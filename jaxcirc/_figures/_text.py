"""Text that may hold anything, such as tokens, as it can be drawn."""

import functools as ft
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any


_WHITE = {"\n": "↵", "\t": "⇥", "\r": "←"}
_RIGHT_TO_LEFT = ("R", "AL")
_MARK = "\N{LEFT-TO-RIGHT MARK}"
_SHAPES = (3, 11)  # from this version on matplotlib lays out what is written from right to left


def shown(text: str) -> str:
    """`text` with an escape for each letter that would not be seen: those that are not printable, marks that turn the direction of text,
    halves of surrogate pairs, and what the font does not have.
    """
    return "".join(_pieces(text))


def shortened(text: str, most: int = 10) -> str:
    """The same, of at most so many letters: its beginning, an ellipsis and its end, between which no escape is cut."""
    pieces = list(_pieces(text))
    if sum(map(len, pieces)) <= most:
        return "".join(pieces)
    return f"{_as_many(pieces, most - most // 3 - 1)}…{_as_many(pieces[::-1], most // 3, backwards=True)}"


def token_names(tokens: Sequence[str]) -> list[str]:
    """Names each position by its token and its number, which stands to the right: a token comes more than once."""
    return [f"{_apart(shortened(token.strip(' ') or '␣'))} {position}" for position, token in enumerate(tokens)]


def _apart(text: str) -> str:
    """Text that what stands beside it is not drawn into: marks at both ends, where it is written from right to left."""
    return f"{_MARK}{text}{_MARK}" if any(map(_goes_left, text)) and ord(_MARK) in _glyphs(_font()) else text


def _pieces(text: str) -> Iterator[str]:
    import matplotlib

    known, turns = _glyphs(_font()), matplotlib.__version_info__[:2] < _SHAPES
    for letter in text:
        letter = _WHITE.get(letter, letter)
        plain = letter.isprintable() and ord(letter) in known
        yield letter if plain and not (turns and _goes_left(letter)) else _escaped(letter)


def _goes_left(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT


def _escaped(letter: str) -> str:
    return letter.encode("ascii", "backslashreplace").decode("ascii") if ord(letter) > 127 else f"\\x{ord(letter):02x}"


def _as_many(pieces: Sequence[str], most: int, *, backwards: bool = False) -> str:
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > most:
            break
        kept.append(piece)
    return "".join(kept[::-1] if backwards else kept)


def _font() -> Any:
    """The file of the font that text is drawn in where nothing else is said."""
    from matplotlib import font_manager

    return font_manager.findfont(font_manager.FontProperties())


@ft.cache
def _glyphs(font: Any) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font).get_charmap())
