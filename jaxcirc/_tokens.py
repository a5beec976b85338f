"""Names of tokens: how one reads by itself, and how some that follow each other read together."""

import re
from collections.abc import Sequence
from typing import Any


_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_SEVERAL = 16  # tokens that may share letters
# The letters that byte-level vocabularies, from GPT-2 on, write bytes with: those that print are themselves, the rest follow from 256 on.
_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PLAIN} | {
    chr(256 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*_PLAIN}))
}


def token_text(tokenizer: Any, token: Any) -> str:
    """The text of a token, or its id without a tokenizer. Bytes that are part of a letter are named, `<0xD7>`: decoded by themselves they
    all read alike.
    """
    token = int(token)
    if tokenizer is None:
        return str(token)
    text = str(tokenizer.decode([token]))
    return text if _UNKNOWN not in text else _of_bytes(tokenizer, token) or f"<token {token}>"


def token_texts(tokenizer: Any, tokens: Any) -> list[str]:
    """The name of each of several tokens."""
    return [token_text(tokenizer, token) for token in tokens]


def together(tokenizer: Any, tokens: Any) -> list[tuple[int, str]]:
    """Reads tokens that follow each other: for each piece of the text of how many tokens it is, and how it reads. Tokens that share a
    letter are one piece; each other token is one by itself.
    """
    ids, pieces, at = [int(token) for token in tokens], [], 0
    if tokenizer is None:
        return [(1, str(token)) for token in ids]
    while at < len(ids):
        count = _share(tokenizer, ids[at : at + _SEVERAL])
        here = ids[at : at + count]
        pieces.append((count, token_text(tokenizer, here[0]) if count == 1 else str(tokenizer.decode(here))))
        at += count
    return pieces


def _share(tokenizer: Any, ids: Sequence[int]) -> int:
    """How many of the first tokens make whole letters together; 1 where none do."""
    counts = range(1, len(ids) + 1)
    return next((count for count in counts if _UNKNOWN not in tokenizer.decode(ids[:count])), 1)


def _of_bytes(tokenizer: Any, token: int) -> str | None:
    """The text of a token whose bytes are known, with `<0x…>` for each that is part of a letter; `None` if they are not."""
    if not callable(getattr(tokenizer, "convert_ids_to_tokens", None)):
        return None
    [written] = tokenizer.convert_ids_to_tokens([token])
    if written is None or not all(letter in _BYTES for letter in written):
        return written if written and _UNKNOWN not in written else None
    held = bytes(_BYTES[letter] for letter in written)
    # Half of a surrogate pair stands for each byte that is part of a letter, which no text in UTF-8 has.
    text = held.decode("utf-8", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda found: f"<0x{ord(found.group()) - 0xDC00:02X}>", text)
