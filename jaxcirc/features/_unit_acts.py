"""Activations of chosen latents over prompts: what annotations of circuits and pages of latents are read off."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._indexing import take
from .._sites import Site
from .._tap import site_read
from ..models import Transformer
from ..runs import allowance, in_groups, rounded_up, TOKENS_AT_ONCE, values_until
from ..saes import AbstractDictionary, anonymous


FEWEST = 256  # tokens at once, however wide a dictionary is


def tokens_together(saes: Mapping[Site, AbstractDictionary]) -> int:
    """How many tokens are encoded at once: all latents of each are there for a moment."""
    widest = max((sae.d_sae for sae in saes.values()), default=1)
    return max(FEWEST, min(TOKENS_AT_ONCE, allowance() // (4 * widest)))


def unit_activations(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    tokens: Int[np.ndarray, "batch seq"],
    mask: Bool[np.ndarray, "batch seq"],
    units: Mapping[Site, Sequence[int] | Int[np.ndarray, " unit"]],
) -> dict[Site, Float[np.ndarray, "batch seq unit"]]:
    """Activations of some latents of each dictionary, by a run that ends where the last is known. Padding has some, too."""
    reads = {site: site_read(site, saes[site]) for site in units}
    chosen = filled_lists(units)
    found: dict[Site, list[np.ndarray]] = {site: [] for site in units}
    for group in in_groups(len(tokens), tokens.shape[1], tokens_together(saes)):
        values = values_until(model, tokens[group], mask[group], set(reads.values()))
        for site, of_site in found.items():
            acts = np.asarray(_encoded(anonymous(saes[site]), values[reads[site]], chosen[site]))
            of_site.append(acts[..., : len(units[site])])
    return {site: np.concatenate(parts)[: len(tokens)] for site, parts in found.items()}


def filled_lists(
    units: Mapping[Site, Sequence[int] | Int[np.ndarray, " unit"]],
) -> dict[Site, Int[np.ndarray, " size"]]:
    """The lists of all sites in one size, filled up with the last unit, so that dictionaries of a kind share programs."""
    size = rounded_up(max(map(len, units.values()), default=1))
    return {site: np.pad(np.asarray(each, np.int32), (0, size - len(each)), "edge") for site, each in units.items()}


@jax.jit
def _encoded(
    sae: AbstractDictionary, x: Float[Array, "batch seq ..."], units: Int[Array, " unit"]
) -> Float[Array, "batch seq unit"]:
    return take(sae.encode(x.reshape(*x.shape[:2], -1)), units, axis=2)
