"""Trains a language model: `python -m weights.train.language_model tiny-gpt2`.

AdamW with warm-up and a cosine to zero, float32, on sequences made as it goes from a fixed seed. The trained arrays are kept as
`.npz` in the scratch folder too; `--saved` writes the Hugging Face folder from them again.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from weights.train.copying import rows_of, Stage
from weights.train.heads import scores, summary
from weights.train.models import initial_model, trainable
from weights.train.paths import SCRATCH, WEIGHTS
from weights.train.text import FIRST_MIXTURES, LAST_MIXTURES, MIXTURES, weighted_sequences
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
    again: int = 0  # steps on text after those, with a learning rate that rises and falls once more


RECIPES = {
    "tiny-gpt2": Recipe(
        steps=2000,
        batch=16,
        learning_rate=3e-3,
        seed=0,
        again=1500,
        before=(
            Stage(steps=1000, batch=32, seq=32, kinds={"turns": 0.3, "pairs": 0.7}, vocabulary=60),
            Stage(steps=700, batch=16, seq=64, kinds={"pairs": 0.3, "lists": 0.7}, vocabulary=1059),
        ),
    ),
    "tiny-gpt-neo": Recipe(steps=2000, batch=16, learning_rate=3e-3, seed=0),
}
AGAIN = 2 / 3  # of the learning rate, when it rises again
CHUNK = 100  # steps whose data is made at once


def cross_entropy(model: jc.Transformer, rows, weights) -> jax.Array:
    """Weighted mean loss in nats of predicting `rows[:, 1:]` from `rows[:, :-1]`."""
    logits = jax.vmap(lambda tokens: jc.run(model, tokens)[0])(rows[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:])
    return jnp.sum(losses * weights[:, 1:]) / jnp.sum(weights[:, 1:])


def train(name: str, tokenizer: Any, recipe: Recipe) -> jc.Transformer:
    """The trained model; its arrays, and the scores of its heads on the way, are saved in the scratch folder."""
    model = initial_model(name, len(tokenizer), seed=recipe.seed)
    history = [{"step": 0, **scores(model)}]
    model, history = train_on(model, chunks(name, tokenizer, recipe), learning_rates(recipe), history)
    return train_again(model, name, tokenizer, recipe, history) if recipe.again else model


def train_again(
    model: jc.Transformer, name: str, tokenizer: Any, recipe: Recipe, history: list[dict]
) -> jc.Transformer:
    """On more text, with an optimiser that knows nothing of what was before."""
    mixture = LAST_MIXTURES[name]
    rate = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate * AGAIN, 100, recipe.again)
    text = text_chunks(tokenizer, lambda first: mixture, recipe.again, recipe.batch, seed=recipe.seed + 50_000)
    return train_on(model, text, rate, history)[0]


def train_on(
    model: jc.Transformer, data: Iterator[tuple[np.ndarray, np.ndarray]], rate: optax.Schedule, history: list[dict]
) -> tuple[jc.Transformer, list[dict]]:
    """The model after all of the data, `[step batch seq+1]` at a time, and the history with a row for each such part."""
    learned, fixed = eqx.partition(model, trainable(model))
    decay = jax.tree.map(lambda x: x.ndim > 1, learned)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.99, weight_decay=0.01, mask=decay))

    @jax.jit
    def step(learned, state, rows, weights):
        loss, gradient = jax.value_and_grad(lambda p: cross_entropy(eqx.combine(p, fixed), rows, weights))(learned)
        updates, state = optimiser.update(gradient, state, learned)
        return optax.apply_updates(learned, updates), state, loss

    state, began = optimiser.init(learned), time.monotonic()
    for rows, weights in data:
        losses = []
        for part, weight in zip(rows, weights, strict=True):
            learned, state, loss = step(learned, state, jnp.asarray(part), jnp.asarray(weight))
            losses.append(loss)
        now = {"step": history[-1]["step"] + len(rows), "loss": float(np.mean(losses[-50:]))}
        history = [*history, now | scores(eqx.combine(learned, fixed))]
        print(f"{summary(history[-1])}, {time.monotonic() - began:.0f} s", flush=True)
        save_arrays(eqx.combine(learned, fixed), SCRATCH / f"{model.name}.npz")
        (SCRATCH / f"{model.name}.json").write_text(json.dumps(history), encoding="utf-8")
    return eqx.combine(learned, fixed), history


def learning_rates(recipe: Recipe) -> optax.Schedule:
    """Warm-up, the highest until the text begins, and on the text a cosine to zero; without anything before it warm-up is on the text."""
    before = sum(stage.steps for stage in recipe.before)
    if not before:
        return optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, min(200, recipe.steps // 10), recipe.steps)
    rising = optax.linear_schedule(0.0, recipe.learning_rate, 200)
    return optax.join_schedules([rising, optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)], [before])


def chunks(name: str, tokenizer: Any, recipe: Recipe) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`[step batch seq+1]` token ids and their weights, some steps at a time: the stages before the text, and the text."""
    steps, batch, _, seed, before, _ = recipe
    for at, stage in enumerate(before):
        for first in range(0, stage.steps, CHUNK):
            n = min(CHUNK, stage.steps - first)
            made = rows_of(stage, n, seed=seed + 100_000 * (at + 1) + first)
            yield made[0].reshape(n, stage.batch, -1), made[1].reshape(n, stage.batch, -1)
    mixture = lambda first: FIRST_MIXTURES[name] if first < steps // 4 else MIXTURES[name]
    yield from text_chunks(tokenizer, mixture, steps, batch, seed=seed + 1000)


def text_chunks(
    tokenizer: Any, mixture: Callable[[int], dict[str, float]], steps: int, batch: int, *, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same of text, by the mixture that is read from each step on."""
    for first in range(0, steps, CHUNK):
        n = min(CHUNK, steps - first)
        made = weighted_sequences(tokenizer, mixture(first), n * batch, seed=seed + first)
        yield made[0].reshape(n, batch, -1), made[1].reshape(n, batch, -1)


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
