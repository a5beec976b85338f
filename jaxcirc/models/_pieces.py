"""A run in pieces: the embedding, each block and the unembedding are a program each, by itself and inside of other programs.

A block's program counts layers from the block, so that all layers of which the same is asked share it, and of most nothing is asked. By
itself a run takes some fifty programs operation by operation, anew for a prompt of another length; in one piece it is one for each set of
sites that is asked for. Inside of a program a block is traced, differentiated and lowered once, however many there are and in however many
functions they stand; the compiler puts its operations back in their place.
"""

import functools as ft
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array

from .._edits import AbstractEdit, Add, At, Blend, Detach, Replace, Scale
from .._sites import Site
from .._tap import Everything, site_read, Tap
from ..saes import AbstractDictionary, anonymous


# Edits that are known by the arrays they hold. A function may change from call to call.
ARRAYS = (Add, Blend, Detach, Replace, Scale)


class Asked(NamedTuple):
    """What is asked of a piece, its sites counting layers from it; of `None` everything is recorded."""

    saes: dict[Site, AbstractDictionary]
    edits: dict[Site, AbstractEdit]
    record: frozenset[Site] | None


class Pieces:
    """Runs pieces of a model under a tap."""

    def __init__(self, tap: Tap):
        self.tap = tap
        self._nothing = Asked({}, {}, None if isinstance(tap.record, Everything) else frozenset())
        self._by_layer = _by_layer(tap)

    def __call__(
        self, piece: Callable[..., Array], part: eqx.Module, layer: int | None, *arrays: Array | None
    ) -> Array:
        """Runs `piece(part, tap, *arrays)`, as a program if what is asked of it is known by arrays, else operation by operation."""
        tap = self.tap
        asked = None if self._by_layer is None else self._by_layer.get(layer, self._nothing)
        if asked is not None:
            try:
                out, found, seen = _program(
                    piece, part, asked.saes, asked.edits, arrays, record=asked.record, inside=layer is not None
                )
            except Exception:  # which is raised again below, and there names the layer
                pass
            else:
                tap.cache |= {site.offset_layers(layer or 0): value for site, value in found.items()}
                tap.seen |= {site.offset_layers(layer or 0): None for site in seen}
                return out
        return piece(part, tap if layer is None else tap.at(layer), *arrays)


@ft.partial(jax.jit, static_argnames=("piece", "record", "inside"))
def _program(
    piece: Callable[..., Array],
    part: eqx.Module,
    saes: dict[Site, AbstractDictionary],
    edits: dict[Site, AbstractEdit],
    arrays: tuple[Array | None, ...],
    *,
    record: frozenset[Site] | None,
    inside: bool,
) -> tuple[Array, dict[Site, Array], dict[Site, None]]:
    tap = Tap(saes, edits, Everything() if record is None else record, layer=0 if inside else None)
    out = piece(part, tap, *arrays)
    return out, tap.cache, tap.seen


def _by_layer(tap: Tap) -> dict[int | None, Asked | None] | None:
    """What is asked of each layer of which anything is: `None` where an edit is another function, or a dictionary reads in one piece and
    writes in another. `None` altogether if what the tap was given cannot be listed.
    """
    if not tap.is_listed:
        return None
    everything = isinstance(tap.record, Everything)
    recorded: Any = () if everything else tap.record
    pairs = [(site.layer, site_read(site, sae).layer) for site, sae in tap.saes.items()]
    apart = {layer for pair in pairs if len({*pair}) == 2 for layer in pair}
    saes, edits, record = map(_grouped, (tap.saes, tap.edits, recorded))
    found: dict[int | None, Asked | None] = dict.fromkeys(apart)
    for layer in {*saes, *edits, *record} - apart:
        changed = edits.get(layer, {})
        if all(type(edit.edit if isinstance(edit, At) else edit) in ARRAYS for edit in changed.values()):
            there = {
                at: anonymous(sae, sae.reads and _from_layer(sae.reads, layer))
                for at, sae in saes.get(layer, {}).items()
            }
            found[layer] = Asked(there, changed, None if everything else frozenset(record.get(layer, ())))
        else:
            found[layer] = None
    return found


def _grouped(sites: Iterable[Site]) -> dict[int | None, dict[Site, Any]]:
    """Sites by layer, counting from it, with what a mapping holds for each."""
    found: dict[int | None, dict[Site, Any]] = {}
    for site in sites:
        here = found.setdefault(site.layer, {})
        here[_from_layer(site, site.layer)] = sites[site] if isinstance(sites, Mapping) else None
    return found


def _from_layer(site: Site, layer: int | None) -> Site:
    return site.offset_layers(-(layer or 0))
