"""Trains a language model: `python -m weights.train.language_model tiny-gpt2`.

AdamW with warm-up and a cosine to zero, float32, on sequences made as it goes from a fixed seed. The trained arrays are kept as
`.npz` in the scratch folder too; `--saved` writes the Hugging Face folder from them again.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm
from weights.train.copying import rows_of, Stage
from weights.train.heads import scores, summary
from weights.train.models import initial_model, trainable
from weights.train.paths import SCRATCH, WEIGHTS
from weights.train.text import FIRST_MIXTURES, MIXTURES, weighted_sequences
from weights.train.tokenizer import train_tokenizer

import jaxcirc as jc
from jaxcirc._files import writing_file
from jaxcirc.interop import save_pretrained


class Recipe(NamedTuple):
    steps: int  # on text
    batch: int  # sequences a step
    learning_rate: float
    seed: int
    before: tuple[Stage, ...] = ()  # the text


RECIPES = {
    "tiny-gpt2": Recipe(
        steps=2000,
        batch=16,
        learning_rate=3e-3,
        seed=0,
        before=(
            Stage(steps=1000, batch=32, seq=32, kinds={"turns": 0.3, "pairs": 0.7}, vocabulary=60),
            Stage(steps=700, batch=16, seq=64, kinds={"pairs": 0.3, "lists": 0.7}, vocabulary=1059),
        ),
    ),
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
    model = initial_model(name, len(tokenizer), seed=recipe.seed)
    learned, fixed = eqx.partition(model, trainable(model))
    schedule = learning_rates(recipe)
    decay = jax.tree.map(lambda x: x.ndim > 1, learned)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01, mask=decay)
    )

    @jax.jit
    def step(learned, state, rows, weights):
        loss, gradient = jax.value_and_grad(lambda p: cross_entropy(eqx.combine(p, fixed), rows, weights))(learned)
        updates, state = optimiser.update(gradient, state, learned)
        return optax.apply_updates(learned, updates), state, loss

    state, done, history = optimiser.init(learned), 0, [{"step": 0, **scores(model)}]
    progress, began = tqdm(total=sum(stage.steps for stage in recipe.before) + recipe.steps, mininterval=10), time.monotonic()
    for rows, weights in chunks(name, tokenizer, recipe):
        losses = []
        for part, weight in zip(rows, weights, strict=True):
            learned, state, loss = step(learned, state, jnp.asarray(part), jnp.asarray(weight))
            losses.append(loss)
        done += len(rows)
        progress.update(len(rows))
        history.append({"step": done, "loss": float(np.mean(losses[-50:])), **scores(eqx.combine(learned, fixed))})
        tqdm.write(f"{summary(history[-1])}, {time.monotonic() - began:.0f} s")
        save_arrays(eqx.combine(learned, fixed), SCRATCH / f"{name}.npz")
    (SCRATCH / f"{name}.json").write_text(json.dumps(history), encoding="utf-8")
    return eqx.combine(learned, fixed)


def learning_rates(recipe: Recipe) -> optax.Schedule:
    """Warm-up, the highest until the text begins, and on the text a cosine to zero; without anything before it warm-up is on the text."""
    before = sum(stage.steps for stage in recipe.before)
    if not before:
        return optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, min(200, recipe.steps // 10), recipe.steps)
    rising = optax.linear_schedule(0.0, recipe.learning_rate, 200)
    return optax.join_schedules([rising, optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)], [before])


def chunks(name: str, tokenizer: Any, recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`[step batch seq+1]` token ids and their weights, some steps at a time: the stages before the text, and the text."""
    steps, batch, _, seed, before = recipe
    for at, stage in enumerate(before):
        for first in range(0, stage.steps, CHUNK):
            n = min(CHUNK, stage.steps - first)
            made = rows_of(stage, n, seed=seed + 100_000 * (at + 1) + first)
            yield tuple(x.reshape(n, stage.batch, -1) for x in made)
    for first in range(0, steps, CHUNK):
        n = min(CHUNK, steps - first)
        mixture = FIRST_MIXTURES[name] if first < steps // 4 else MIXTURES[name]
        made = weighted_sequences(tokenizer, mixture, n * batch, seed=seed + 1000 + first)
        yield tuple(x.reshape(n, batch, -1) for x in made)


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
    if RECIPES[name].before:  # what is to be shown of its heads
        shutil.copy(SCRATCH / f"{name}.json", WEIGHTS / name / "training.json")
