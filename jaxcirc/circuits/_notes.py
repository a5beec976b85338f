"""What is noted of a circuit, checked where it is given."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .._checks import check_kind, check_list
from ._rows import NodeRow


_EXPECTED = {
    "tokens": (Sequence, "a list of the prompt's tokens, as text"),
    "annotations": (Mapping, "a mapping from nodes to texts, as jc.load_annotations gives one"),
    "latents": (Mapping, "a mapping from latents to what is known of them, as jc.circuits.describe_latents gives one"),
    "title": (str, "a text"),
}


def check_notes(notes: Mapping[str, Any]) -> None:
    """TypeError or ValueError unless the notes are of the kinds that pages and files show, and can be saved as JSON."""
    for name, value in notes.items():
        if name in _EXPECTED and value is not None:
            check_kind(f"Circuit.annotate: {name}", value, *_EXPECTED[name])
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"Circuit.annotate: {name} is to be saved as JSON: {error}. Give plain numbers that are finite, texts, lists and dicts."
            ) from None


def check_tokens(nodes: Iterable[NodeRow], tokens: Any, length: Any) -> None:
    """ValueError unless there is a token for each position that nodes have, and no other; `length` is the prompts', where it is known."""
    texts = check_list("Circuit.annotate: tokens", "the prompt's tokens, as text", tokens)
    for text in texts:
        check_kind("Circuit.annotate: tokens: a token", text, str, "text, as tokenizer.decode gives it")
    positions = [node.pos for node in nodes if node.pos is not None]
    if not positions:
        return
    seq = length if isinstance(length, int) else None
    if len(texts) != seq if seq is not None else len(texts) <= max(positions):
        there = f"prompts of {seq} tokens" if seq is not None else f"nodes at position {max(positions)}"
        raise ValueError(
            f"Circuit.annotate: tokens: {len(texts)} were given, and the circuit has {there}. Give one for each position."
        )
