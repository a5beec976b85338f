"""Formats that are known in order to be refused by name, rather than as files of no known format."""

import re

from ._reader import Refused
from ._source import Source


def _is_temporal(source: Source) -> bool:
    return any(name.startswith("attn_layers.") for name in source.state) and {"D", "E", "b"} <= set(source.state)


def _is_part_of_a_cross_layer_set(source: Source) -> bool:
    return any(re.fullmatch(r"W_(enc|dec)_\d+", name) for name in source.state)


REFUSED = (
    Refused(
        "a temporal SAE",
        _is_temporal,
        "its latents attend to earlier positions, and a dictionary here reads one position at a time.",
    ),
    Refused(
        "one layer of a cross-layer transcoder",
        _is_part_of_a_cross_layer_set,
        "load the folder that it lies in with jc.load_cross_layer_transcoder.",
    ),
)
