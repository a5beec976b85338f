"""Dictionaries that keep what the rest of the model reads.

What little of the variance a later head needs (which token came before, for induction) can be lost in a good reconstruction, and more so
where every layer is replaced. So dictionaries are trained further, all of a kind together, on the sum of three things: the part of the
variance that is not reconstructed; the KL divergence between the model's predictions and those with every site of the kind replaced by
its reconstruction (after Braun et al. 2024, arXiv 2405.12241); and the share of the errors among all effects on agreement
(`weights/train/effects.py`). The thresholds stay.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm
from weights.train.effects import along_the_path, at_both_ends, error_share, rows_of, some, training_pairs
from weights.train.evaluate import splice
from weights.train.text import MIXTURES, sequences

import jaxcirc as jc
from jaxcirc.saes import SAE


BATCH, LEARNING_RATE = 16, 1e-3
PAIRS = 16  # of each kind of sentence, a step; twice as many where their gradients are there
POOL = 640  # pairs of each kind whose gradients are computed once


class Round(NamedTuple):
    """Steps, how much the share of the errors' effects weighs, and whether its gradients are integrated or those at both ends."""

    steps: int
    effects: float = 0.0
    path: bool = False


def train_downstream(
    model: jc.Transformer, tokenizer: Any, saes: dict[jc.Site, SAE], round: Round, *, seed: int = 0
) -> dict[jc.Site, SAE]:
    """The same dictionaries, trained further."""
    steps, effects, path = round
    rows = sequences(tokenizer, MIXTURES[model.name], steps * BATCH, seed=seed + 900)[:, :-1]
    pairs, rng = training_pairs(tokenizer, seed=seed + 900) if effects else {}, np.random.default_rng(seed + 900)
    optimiser = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps), b2=0.99)

    def loss(saes, tokens, ends):
        def of_one(row):
            clean, cache = jc.run(model, row, record=list(saes))
            replaced, _ = jc.run(model, row, edits=splice(saes))
            divergence = optax.kl_divergence(jax.nn.log_softmax(replaced), jax.nn.softmax(clean)).mean()
            return divergence + sum(unexplained(sae, cache[site]) for site, sae in saes.items()) / len(saes)

        shares = [error_share(sae, *found[site]) for found in ends for site, sae in saes.items()]
        return jax.vmap(of_one)(tokens).mean() + (effects * jnp.stack(shares).mean() if shares else 0.0)

    @eqx.filter_jit
    def step(saes, state, tokens, pairs):
        ends = pairs if path else [at_both_ends(model, some, tuple(saes)) for some in pairs]
        value, gradient = jax.value_and_grad(loss)(saes, tokens, ends)
        gradient = {site: eqx.tree_at(lambda g: g.activation, g, replace_fn=_zeros) for site, g in gradient.items()}
        updates, state = optimiser.update(gradient, state)
        return {site: unit_rows(sae) for site, sae in eqx.apply_updates(saes, updates).items()}, state, value

    state = optimiser.init(saes)  # pyright: ignore[reportArgumentType]  # a tree of arrays
    progress = tqdm(rows.reshape(steps, BATCH, -1), desc="downstream", mininterval=10)
    pool = along_the_path(model, saes, pairs, POOL) if path else []
    for tokens in progress:
        drawn = [rows_of(kind, PAIRS * 2, rng) for kind in pool] if path else some(pairs, PAIRS, rng)
        saes, state, value = step(saes, state, jnp.asarray(tokens), drawn)
        progress.set_postfix(loss=float(value), refresh=False)
    return saes


def unexplained(sae: SAE, x: jax.Array) -> jax.Array:
    """The part of the variance over positions that is not reconstructed."""
    error = x - sae.decode(sae.encode(x), x)
    return jnp.sum(error**2) / jnp.sum((x - x.mean(axis=0)) ** 2)


def unit_rows(sae: SAE) -> SAE:
    return eqx.tree_at(lambda s: s.W_dec, sae, sae.W_dec / jnp.linalg.norm(sae.W_dec, axis=1, keepdims=True))


def _zeros(activation):
    return jax.tree.map(jnp.zeros_like, activation)
