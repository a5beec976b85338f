"""What a circuit's latents fire on, read off the prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

from .._sites import Site
from ..features._unit_acts import unit_activations
from ..models import Transformer
from ..saes import AbstractDictionary
from ._circuit import Circuit


def annotate_latents(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    token_batches: Sequence[Int[Array, "batch seq"]],
    tokenizer: Any,
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    most: int = 3,
) -> dict[str, str]:
    """For each latent of the circuit, the tokens on which it is strongest on average, among these prompts: `{node: "on is, was"}`.

    **Arguments:** - `token_batches`: prompts, for example the clean and the corrupt ones. - `mask`: False for padding, of each.
    """
    latents = [node for node in circuit.node_rows() if node.kind == "latent"]
    units: dict[Site, list[int]] = {}
    for node in latents:
        units.setdefault(Site.parse(node.site), []).append(node.unit)
    units = {site: sorted(set(chosen)) for site, chosen in units.items()}
    tokens = np.concatenate([np.asarray(batch) for batch in token_batches])
    real = np.ones(tokens.shape, bool) if mask is None else np.tile(np.asarray(mask), (len(token_batches), 1))
    acts = _activations(model, {site: saes[site] for site in units}, tokens, real, units)
    kinds = np.unique(tokens[real])
    words = [tokenizer.decode([int(kind)]).strip() for kind in kinds]
    notes = {}
    for site, chosen in units.items():
        means = np.stack([acts[site][(tokens == kind) & real].mean(axis=0) for kind in kinds])  # [token unit]
        for unit, strength in zip(chosen, means.T, strict=True):
            notes[site, unit] = [
                words[i] for i in np.argsort(-strength)[:most] if strength[i] > 0.1 * strength.max() > 0
            ]
    named = {node.node: notes[Site.parse(node.site), node.unit] for node in latents}
    return {name: "on " + ", ".join(words) for name, words in named.items() if words}


def _activations(model, saes, tokens, mask, units) -> dict[Site, np.ndarray]:
    return unit_activations(model, saes, tokens, mask, units)
