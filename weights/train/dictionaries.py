"""Trains a model's dictionaries, one kind after the other: `python -m weights.train.dictionaries tiny-gpt2`.

BatchTopK (Bussmann et al. 2024, arXiv 2412.06410): of all pre-activations of a batch, the `k` times as many largest as there are tokens
stay on. The cut is read off a sample of the batch, and its running mean is the threshold of the JumpReLU that is saved. Each site's
activations are scaled to the norm `sqrt(d_in)` for training, and the scale is folded into the saved arrays.
"""

import argparse
import functools as ft
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm
from weights.train.downstream import Round, train_downstream
from weights.train.paths import WEIGHTS
from weights.train.text import MIXTURES, SEQ, sequences

import jaxcirc as jc
from jaxcirc.interop.dictionaries import save_sae
from jaxcirc.saes import JumpReLU, SAE


class Size(NamedTuple):
    """Of the dictionaries of one kind: latents on, latents, steps, and the rounds of `downstream` training after them."""

    k: int
    d_sae: int
    steps: int
    downstream: tuple[Round, ...] = ()


BATCH, LEARNING_RATE = 16, 2e-3
EMBED = "hook_resid_pre"  # of the first block only
RECIPES = {
    "tiny-gpt2": {
        EMBED: Size(16, 512, 300, (Round(150, 1.0),)),
        "hook_attn_out": Size(36, 512, 500, (Round(500, 4.0, path=True), Round(200, 8.0, path=True))),
        "hook_mlp_out": Size(20, 512, 500, (Round(300, 2.0), Round(200, 4.0, path=True))),
        "hook_resid_post": Size(
            36, 512, 700, (Round(500, 1.0), Round(250, 1.0, path=True), Round(450, 0.5, path=True))
        ),
    },
    "tiny-gpt-neo": {
        EMBED: Size(12, 256, 800),
        "hook_attn_out": Size(12, 256, 800),
        "hook_mlp_out": Size(12, 256, 800),
        "hook_resid_post": Size(16, 256, 800, (Round(400),)),
        "mlp.hook_post": Size(20, 512, 800),
    },
}
SAMPLE = 96  # tokens of a batch off which the cut is read
RESAMPLE = (0.15, 0.3, 0.45)  # after these parts of training, latents that were never on since the last time start anew


class Parameters(NamedTuple):
    """One dictionary in training, on scaled activations; `W_dec` has rows of norm 1."""

    W_enc: jax.Array
    b_enc: jax.Array
    W_dec: jax.Array
    b_dec: jax.Array


def sites_of(model: jc.Transformer, kind: str) -> tuple[jc.Site, ...]:
    """Every site of the kind that gets a dictionary."""
    return tuple(jc.Site.parse(f"blocks.{layer}.{kind}") for layer in range(1 if kind == EMBED else model.n_layers))


@ft.partial(jax.jit, static_argnames="sites")
def activations(model: jc.Transformer, tokens: jax.Array, sites: tuple[jc.Site, ...]) -> list[jax.Array]:
    """For each site `[batch * seq d_in]`."""
    cache = jax.vmap(lambda row: jc.run(model, row, record=sites)[1])(tokens)
    return [cache[site].reshape(tokens.size, -1) for site in sites]


def start(x: np.ndarray, d_sae: int, rng: np.random.Generator) -> Parameters:
    """The mean of the data as bias, random data points around it as directions."""
    mean = x.mean(axis=0)
    rows = (
        x[rng.integers(len(x), size=d_sae)] - mean + 0.1 * rng.standard_normal((d_sae, x.shape[1])).astype(np.float32)
    )
    W_dec = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)
    return Parameters(0.7 * W_dec.T, jnp.zeros(d_sae), W_dec, jnp.asarray(mean, jnp.float32))


def reconstruct(p: Parameters, x: jax.Array, k: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Reconstruction, the batch's cut, and which latents were on."""
    pre = jax.nn.relu((x - p.b_dec) @ p.W_enc + p.b_enc)
    sample = jax.lax.stop_gradient(pre[:: max(1, len(x) // SAMPLE)])
    cut = jnp.sort(sample.ravel())[-k * len(sample)]
    acts = jnp.where(pre > cut, pre, 0)
    return acts @ p.W_dec + p.b_dec, (cut, (acts > 0).any(axis=0))


@ft.partial(jax.jit, static_argnames=("k", "optimiser"))
def step(dictionaries, states, xs, k: int, optimiser):
    """One step of every dictionary. A Python loop rather than a vmap: large matrix products are faster apart on a CPU."""

    def loss(p, x):
        y, aux = reconstruct(p, x, k)
        return jnp.mean(jnp.sum((x - y) ** 2, axis=-1)) / x.shape[-1], aux

    out, new_states, seen = [], [], []
    for p, state, x in zip(dictionaries, states, xs, strict=True):
        (value, (cut, on)), gradient = jax.value_and_grad(loss, has_aux=True)(p, x)
        updates, state = optimiser.update(gradient, state, p)
        p = Parameters(*optax.apply_updates(p, updates))  # pyright: ignore[reportGeneralTypeIssues]  # optax says any tree
        p = p._replace(W_dec=p.W_dec / jnp.linalg.norm(p.W_dec, axis=1, keepdims=True))
        out.append(p)
        new_states.append(state)
        seen.append((value, cut, on))
    return out, new_states, seen


def train(model: jc.Transformer, tokenizer: Any, kind: str, size: Size, *, seed: int = 0) -> dict[jc.Site, SAE]:
    """The dictionaries of one kind, from one pass over fresh text."""
    sites, steps = sites_of(model, kind), size.steps
    rows = sequences(tokenizer, MIXTURES[model.name], (steps + 8) * BATCH, seed=seed + 500)[:, :-1]
    batches = rows.reshape(-1, BATCH, rows.shape[1])
    rng = np.random.default_rng(seed)
    first = [np.concatenate(x) for x in zip(*(activations(model, b, sites) for b in batches[steps:]), strict=True)]
    scales = [float(np.sqrt(x.shape[1]) / np.linalg.norm(x, axis=1).mean()) for x in first]
    dictionaries = [start(scale * x, size.d_sae, rng) for scale, x in zip(scales, first, strict=True)]
    constant, decay = optax.constant_schedule(LEARNING_RATE), optax.cosine_decay_schedule(LEARNING_RATE, steps // 2)
    optimiser = optax.adam(optax.join_schedules([constant, decay], [steps // 2]), b2=0.99)
    states = [optimiser.init(p) for p in dictionaries]
    thresholds, alive = [0.0] * len(sites), [np.zeros(size.d_sae, bool) for _ in sites]
    again = {int(part * steps) for part in RESAMPLE}
    for i in tqdm(range(steps), desc=kind, mininterval=10):
        xs = [scale * x for scale, x in zip(scales, activations(model, batches[i], sites), strict=True)]
        dictionaries, states, seen = step(dictionaries, states, xs, size.k, optimiser)
        cuts = [float(cut) for _, cut, _ in seen]
        thresholds = [0.98 * t + 0.02 * cut if i > 100 else cut for t, cut in zip(thresholds, cuts, strict=True)]
        alive = [a | np.asarray(on) for a, (_, _, on) in zip(alive, seen, strict=True)]
        if i in again:
            dictionaries = [revive(p, x, a, size.k, rng) for p, x, a in zip(dictionaries, xs, alive, strict=True)]
            alive = [np.zeros_like(a) for a in alive]
    final = zip(sites, dictionaries, thresholds, scales, strict=True)
    return {site: as_sae(p, threshold, scale, site) for site, p, threshold, scale in final}


def revive(p: Parameters, x: jax.Array, alive: np.ndarray, k: int, rng: np.random.Generator) -> Parameters:
    """Latents that are never on get the directions of the tokens that are reconstructed worst."""
    dead = np.flatnonzero(~alive)
    if not len(dead):
        return p
    error = np.asarray(x - reconstruct(p, x, k)[0])
    size = np.sum(error**2, axis=1)
    rows = error[rng.choice(len(error), len(dead), p=size / size.sum())]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return p._replace(
        W_dec=p.W_dec.at[dead].set(rows), W_enc=p.W_enc.at[:, dead].set(0.7 * rows.T), b_enc=p.b_enc.at[dead].set(0.0)
    )


def as_sae(p: Parameters, threshold: float, scale: float, site: jc.Site) -> SAE:
    """On activations as they are: with `x = x_scaled / scale` the latents, the biases and the threshold shrink by `scale`."""
    return SAE(
        W_enc=p.W_enc,
        b_enc=p.b_enc / scale,
        W_dec=p.W_dec,
        b_dec=p.b_dec / scale,
        activation=JumpReLU(jnp.full(p.b_enc.shape, threshold / scale)),
        site=site,
        processing=(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="these alone; the others stay as they are")
    arguments = parser.parse_args()
    name = arguments.name
    model, tokenizer = jc.from_pretrained(name), jc.load_tokenizer(name)
    for kind in arguments.kinds or RECIPES[name]:
        size = RECIPES[name][kind]
        trained = train(model, tokenizer, kind, size)
        for seed, part in enumerate(size.downstream):
            trained = train_downstream(model, tokenizer, trained, part, seed=seed)
        for site, sae in trained.items():
            about = {
                "model_name": name,
                "context_size": SEQ,
                "prepend_bos": True,
                "dataset_path": "weights/train/text.py",
            }
            save_sae(sae, WEIGHTS / name / "saes" / str(site), metadata=about)
