"""A run of known arrays in pieces: the embedding, each block, and the unembedding are one program each.

Operation by operation a run takes some fifty programs, anew for a prompt of another length, and hundreds of calls; in one piece it is one
program for each set of sites that is asked for. A block's program counts layers from the block, so that all layers of which the same is
asked share it, and of most nothing is asked. Under transformations a run stays as it stands, to be differentiated, batched and compiled as
a whole.
"""

import functools as ft
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array

from .._edits import AbstractEdit, Add, Blend, Detach, Replace, Scale
from .._sites import Site
from .._tap import Everything, site_read, Tap
from .._traced import is_traced
from .._typing import Keys, Logits, Tokens
from ..saes import AbstractDictionary, anonymous
from ._masks import window_masks
from ._transformer import Transformer


# Edits that are known by the arrays they hold. A function may change from call to call.
ARRAYS = (Add, Blend, Detach, Replace, Scale)


class Asked(NamedTuple):
    """What is asked of a piece, its sites counting layers from it; of `None` everything is recorded."""

    saes: dict[Site, AbstractDictionary]
    edits: dict[Site, AbstractEdit]
    record: frozenset[Site] | None


def run_in_pieces(model: Transformer, tokens: Tokens, tap: Tap, keys: Keys | None) -> Logits:
    """What `model(tokens, tap, keys)` gives, and what it leaves in the tap."""
    ends = model.without_blocks
    widths = tuple(dict.fromkeys(model.windows))
    masks = dict(zip(widths, window_masks(keys, seq=len(tokens), causal=model.causal, windows=widths), strict=True))
    resid = _run(_embed, ends, tap, None, tokens, keys)
    for layer, (block, window) in enumerate(zip(model.blocks, model.windows, strict=True)):
        resid = _run(_through, block, tap, layer, resid, masks[window])
    return _run(_unembed, ends, tap, None, resid)


def _embed(ends, tap, tokens, keys):
    return ends.embed(tokens, tap, keys)


def _through(block, tap, resid, mask):
    return block(resid, mask, tap)


def _unembed(ends, tap, resid):
    return ends.unembed(resid, tap)


def _run(piece: Callable[..., Array], part: eqx.Module, tap: Tap, layer: int | None, *arrays: Array | None) -> Array:
    """Runs a piece as a program if what is asked of it is known by arrays, else operation by operation."""
    asked = None if is_traced(arrays) else _asked(tap, layer)
    if asked is not None:
        try:
            out, found, seen = _program(piece, part, asked.saes, asked.edits, arrays, record=asked.record)
        except Exception:  # which is raised again below, and there names the layer
            pass
        else:
            tap.cache |= {site.offset_layers(layer or 0): value for site, value in found.items()}
            tap.seen |= {site.offset_layers(layer or 0): None for site in seen}
            return out
    return piece(part, tap if layer is None else tap.at(layer), *arrays)


@ft.partial(jax.jit, static_argnames=("piece", "record"))
def _program(
    piece: Callable[..., Array],
    part: eqx.Module,
    saes: dict[Site, AbstractDictionary],
    edits: dict[Site, AbstractEdit],
    arrays: tuple[Array | None, ...],
    *,
    record: frozenset[Site] | None,
) -> tuple[Array, dict[Site, Array], dict[Site, None]]:
    tap = Tap(saes, edits, Everything() if record is None else record)
    out = piece(part, tap.at(0) if piece is _through else tap, *arrays)
    return out, tap.cache, tap.seen


def _asked(tap: Tap, layer: int | None) -> Asked | None:
    """What is asked of a piece; `None` if an edit is another function, or a dictionary reads in one piece and writes in another."""
    of = {site: site_read(site, sae) for site, sae in tap.saes.items()}
    if any(site.layer != read.layer and layer in (site.layer, read.layer) for site, read in of.items()):
        return None
    here = lambda sites: {site.offset_layers(-(layer or 0)): site for site in sites if site.layer == layer}
    edits = {at: tap.edits[site] for at, site in here(tap.edits).items()}
    if any(type(edit) not in ARRAYS for edit in edits.values()):
        return None
    saes = {}
    for at, site in here(tap.saes).items():
        reads = tap.saes[site].reads
        saes[at] = anonymous(tap.saes[site], None if reads is None else reads.offset_layers(-(layer or 0)))
    record: Any = tap.record
    return Asked(saes, edits, None if isinstance(record, Everything) else frozenset(here(record)))
