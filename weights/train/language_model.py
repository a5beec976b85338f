"""Trains a language model: `python -m weights.train.language_model tiny-gpt2`.

AdamW with warm-up and a cosine to zero, float32, on sequences made as it goes from a fixed seed. The trained arrays are kept as
`.npz` in the scratch folder too; `--saved` writes the Hugging Face folder from them again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm
from weights.train.models import initial_model, trainable
from weights.train.paths import SCRATCH, WEIGHTS
from weights.train.text import FIRST_MIXTURES, MIXTURES, weighted_sequences
from weights.train.tokenizer import train_tokenizer

import jaxcirc as jc
from jaxcirc._files import writing_file
from jaxcirc.interop import save_pretrained


class Recipe(NamedTuple):
    steps: int
    batch: int  # sequences a step
    learning_rate: float
    seed: int


RECIPES = {
    "tiny-gpt2": Recipe(steps=2000, batch=16, learning_rate=2e-3, seed=0),
    "tiny-gpt-neo": Recipe(steps=2000, batch=16, learning_rate=3e-3, seed=0),
}
CHUNK = 100  # steps whose data is made at once


def cross_entropy(model: jc.Transformer, rows, weights) -> jax.Array:
    """Weighted mean loss in nats of predicting `rows[:, 1:]` from `rows[:, :-1]`."""
    logits = jax.vmap(lambda tokens: jc.run(model, tokens)[0])(rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    return jnp.sum(losses * weights[:, 1:]) / jnp.sum(weights[:, 1:])


def train(name: str, tokenizer: Any, recipe: Recipe) -> jc.Transformer:
    """The trained model; its arrays are saved in the scratch folder on the way."""
    steps, batch, learning_rate, seed = recipe
    model = initial_model(name, len(tokenizer), seed=seed)
    learned, fixed = eqx.partition(model, trainable(model))
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, min(200, steps // 10), steps)
    decay = jax.tree.map(lambda x: x.ndim > 1, learned)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01, mask=decay)
    )

    @jax.jit
    def step(learned, state, rows, weights):
        loss, gradient = jax.value_and_grad(lambda p: cross_entropy(eqx.combine(p, fixed), rows, weights))(learned)
        updates, state = optimiser.update(gradient, state, learned)
        return optax.apply_updates(learned, updates), state, loss

    state = optimiser.init(learned)
    progress, began = tqdm(total=steps, mininterval=10), time.monotonic()
    for first in range(0, steps, CHUNK):
        n = min(CHUNK, steps - first)
        mixture = FIRST_MIXTURES[name] if first < steps // 4 else MIXTURES[name]
        rows, weights = weighted_sequences(tokenizer, mixture, n * batch, seed=seed + 1000 + first)
        losses = []
        for part, weight in zip(np.split(rows, n), np.split(weights, n), strict=True):
            learned, state, loss = step(learned, state, jnp.asarray(part), jnp.asarray(weight))
            losses.append(loss)
        progress.update(n)
        tqdm.write(f"step {first + n}: loss {np.mean(losses[-50:]):.4f}, {time.monotonic() - began:.0f} s")
        save_arrays(eqx.combine(learned, fixed), SCRATCH / f"{name}.npz")
    return eqx.combine(learned, fixed)


def save_arrays(model: jc.Transformer, path: Path) -> None:
    """The leaves in tree order: independent of any file format, so that a run is never lost to one."""
    with writing_file(path) as aside:
        np.savez(aside, *map(np.asarray, jax.tree.leaves(model)))


def load_arrays(name: str, vocabulary: int) -> jc.Transformer:
    """The model that the last training run left in the scratch folder."""
    structure = jax.tree.structure(initial_model(name, vocabulary))
    with np.load(SCRATCH / f"{name}.npz") as file:
        return jax.tree.unflatten(structure, [jnp.asarray(file[f"arr_{i}"]) for i in range(len(file.files))])


def name_the_class(path: Path) -> None:
    """Calls the tokenizer's class by the name that older versions of transformers know too."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(RECIPES))
    parser.add_argument("--saved", action="store_true", help="write the folder from the arrays that the last run left")
    arguments = parser.parse_args()
    name, tokenizer = arguments.name, train_tokenizer()
    model = load_arrays(name, len(tokenizer)) if arguments.saved else train(name, tokenizer, RECIPES[name])
    save_pretrained(model, WEIGHTS / name, tokenizer)
    name_the_class(WEIGHTS / name / "tokenizer_config.json")
