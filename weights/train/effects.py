"""What a dictionary's error does to a behaviour, as a loss.

On pairs of agreement prompts the error node's effect is `<error_corrupt - error_clean, gradient of the metric>`, and a latent's is its own
difference times its direction's product with the same gradient (`jc.node_effects`). The loss is the share of the errors among all
effects at a site. Whatever the latents' effects are, only the errors' are pushed down: the sum that they are divided by is held.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.data._agreement import how_many
from jaxcirc.saes import SAE


KINDS = ("simple", "nounpp", "rc", "within_rc")
MOST = 8192  # pairs of a kind to draw from


class Pairs(NamedTuple):
    """Prompt pairs of one kind of sentence."""

    clean: jax.Array  # [batch seq]
    corrupt: jax.Array
    answer: jax.Array  # [batch]
    foil: jax.Array


def training_pairs(tokenizer: Any, *, seed: int) -> dict[str, Pairs]:
    """Pairs of every kind, none of which is held out."""
    found = {}
    for kind in KINDS:
        n = min(MOST, how_many(kind, "train"))
        prompts = jc.data.subject_verb(tokenizer, n, kind=kind, seed=seed, split="train")
        found[kind] = Pairs(prompts.clean, prompts.corrupt, prompts.answer, prompts.foil)
    return found


def some(pairs: Mapping[str, Pairs], n: int, rng: np.random.Generator) -> list[Pairs]:
    """`n` pairs of each kind."""
    drawn = [(p, rng.integers(len(p.answer), size=n)) for p in pairs.values()]
    return [Pairs(*(x[rows] for x in p)) for p, rows in drawn]


def rows_of(
    found: Mapping[jc.Site, tuple[np.ndarray, np.ndarray]], n: int, rng: np.random.Generator
) -> dict[jc.Site, tuple[np.ndarray, np.ndarray]]:
    """`n` pairs of what `along_the_path` found."""
    rows = rng.integers(next(iter(found.values()))[0].shape[1], size=n)
    return {site: (x[:, rows], gradients[:, rows]) for site, (x, gradients) in found.items()}


def at_both_ends(
    model: jc.Transformer, pairs: Pairs, sites: Sequence[jc.Site]
) -> dict[jc.Site, tuple[jax.Array, jax.Array]]:
    """For each site the values `[2 batch seq d_model]` of clean and corrupt prompts, and the metric's gradients `[3 batch seq d_model]`
    there: of the clean and of the corrupt prompt, and their mean.
    """

    def of_one(tokens, answer, foil):
        def metric(added):
            logits, cache = jc.run(model, tokens, record=sites, edits={str(s): jc.Add(v) for s, v in added.items()})
            return logits[-1, answer] - logits[-1, foil], cache

        zeros = {site: jnp.zeros((len(tokens), model.d_model)) for site in sites}
        gradient, cache = jax.grad(metric, has_aux=True)(zeros)
        return {site: cache[site] for site in sites}, gradient

    both = jax.vmap(jax.vmap(of_one), in_axes=(0, None, None))
    values, gradients = both(jnp.stack([pairs.clean, pairs.corrupt]), pairs.answer, pairs.foil)
    three = {site: jnp.concatenate([ends, ends.mean(axis=0, keepdims=True)]) for site, ends in gradients.items()}
    return jax.lax.stop_gradient({site: (values[site], three[site]) for site in sites})


def along_the_path(
    model: jc.Transformer, saes: Mapping[jc.Site, SAE], pairs: Mapping[str, Pairs], n: int
) -> list[dict[jc.Site, tuple[np.ndarray, np.ndarray]]]:
    """For each kind and site the values `[2 n seq d_model]` of `n` pairs, and their integrated gradients `[1 n seq d_model]`, which are
    those of `jc.node_effects`. They take longer than the gradients at both ends, so they are computed once for all steps.
    """
    record = jax.jit(jax.vmap(jax.vmap(lambda row: jc.run(model, row, record=list(saes))[1])))
    found = []
    for kind in pairs.values():
        some = Pairs(*(x[:n] for x in kind))
        metric, method = jc.LogitDiff(some.answer, some.foil), jc.IntegratedGradients(5)
        effects = jc.node_effects(model, saes, some.clean, some.corrupt, metric, method=method)
        values = record(jnp.stack([some.clean, some.corrupt]))
        found.append({s: (np.asarray(values[s]), np.asarray(effects.gradient[s])[None]) for s in saes})
    return found


def error_share(sae: SAE, x: jax.Array, gradients: jax.Array) -> jax.Array:
    """The share of the error's effects, by each of the gradients `[end batch seq d_model]`."""
    acts = sae.encode(x)
    error = x - sae.decode(acts, x)
    # [batch seq d_model] · [end batch seq d_model] -> [end batch seq]
    errors = jnp.abs(jnp.sum((error[1] - error[0]) * gradients, axis=-1)).sum()
    latents = jnp.abs((acts[1] - acts[0]) * (gradients @ sae.W_dec.T)).sum()
    return errors / jax.lax.stop_gradient(errors + latents)
