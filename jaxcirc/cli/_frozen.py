"""`--freeze`: what is held, in the same words for every command."""

from collections.abc import Iterable
from typing import Any

from ..jacobian import frozen
from ..models import Transformer


HELD = {
    "layer_norms": frozen.layer_norms,
    "patterns": frozen.patterns,
    "gates": frozen.gates,
    "detached": frozen.detached,
    "nothing": lambda model: set(),
}
SAID = "layer_norms, patterns, gates, detached (all three), or nothing"


def held(words: Iterable[str], model: Transformer) -> set[Any]:
    """The sites that the words stand for; one that is none of the words is a site itself."""
    sites: set[Any] = set()
    for word in words:
        sites |= HELD[word](model) if word in HELD else {word}
    return sites
