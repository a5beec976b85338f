"""Where in a JSON text its parts stand, for messages that name the line."""

import json
import re
from collections.abc import Iterator
from typing import Any


# Between values; the text is known to be whole JSON, so that what stands there need not be checked.
_COMMA, _COLON = re.compile(r"[\s,]*"), re.compile(r"[\s:]*")
_KINDS = {list: "list", str: "text", bool: "truth value", int: "number", float: "number", type(None): "null"}


def json_kind(value: Any) -> str:
    """What JSON calls a value that is no object: `"list"`, `"number"`."""
    return _KINDS[type(value)]


def parsed(text: str) -> Any:
    """What a text is as JSON; `None` if it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None


def members(text: str) -> Iterator[tuple[str, int]]:
    """The members of the JSON object that a text is, and where the value of each begins."""
    decode, at = json.JSONDecoder().raw_decode, _past(_COMMA, text, text.index("{") + 1)
    while text[at] != "}":
        name, end = decode(text, at)
        begin = _past(_COLON, text, end)
        yield name, begin
        at = _past(_COMMA, text, decode(text, begin)[1])


def items(text: str, begin: int) -> Iterator[tuple[int, Any]]:
    """The items of the JSON list that opens at `begin`, each after the number of the line on which it begins, from 1."""
    decode, at = json.JSONDecoder().raw_decode, _past(_COMMA, text, begin + 1)
    line, counted = 1, 0
    while text[at] != "]":
        line, counted = line + text.count("\n", counted, at), at
        item, end = decode(text, at)
        yield line, item
        at = _past(_COMMA, text, end)


def _past(gap: re.Pattern[str], text: str, at: int) -> int:
    found = gap.match(text, at)
    return found.end() if found else at
