"""Measures a shipped model: `python -m weights.train.evaluate tiny-gpt2` prints the numbers of its card as JSON, and keeps
them as `measured.json` beside it.

Everything is on combinations of words that the training text does not hold (`split="held_out"`), from seeds of its own.
"""

import argparse
import functools as ft
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from weights.train.paths import WEIGHTS
from weights.train.text import MIXTURES, SEQ, sequences

import jaxcirc as jc
from jaxcirc.data._agreement import how_many
from jaxcirc.saes import AbstractDictionary


AGREEMENT = ("simple", "nounpp", "rc", "within_rc")


@jax.jit
def _batch_logits(model: jc.Transformer, tokens, edits):
    return jax.vmap(lambda row: jc.run(model, row, edits=edits)[0])(tokens)


def batch_logits(
    model: jc.Transformer, tokens, edits: Mapping[str, jc.AbstractEdit] | None = None, size: int = 128
) -> jax.Array:
    """`[batch seq d_vocab]`, a part of the batch at a time."""
    parts = [
        _batch_logits(model, jnp.asarray(tokens[i : i + size]), dict(edits or {})) for i in range(0, len(tokens), size)
    ]
    return jnp.concatenate(parts)


@ft.partial(jax.jit, static_argnames="first")
def _losses(model: jc.Transformer, rows, edits, first: int = 0):
    logits = _batch_logits(model, rows[:, :-1], edits)[:, first:]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), rows[:, 1 + first :, None], axis=-1)[..., 0]


def text_loss(
    model: jc.Transformer, rows, edits: Mapping[str, jc.AbstractEdit] | None = None, size: int = 128
) -> float:
    """Mean loss in nats a token over held-out sequences `[n SEQ+1]`."""
    parts = [_losses(model, jnp.asarray(rows[i : i + size]), dict(edits or {})) for i in range(0, len(rows), size)]
    return float(jnp.concatenate(parts).mean())


def prompt_accuracy(model: jc.Transformer, prompts: jc.data.Prompts) -> dict[str, float]:
    """`answer_over_foil`: how often the answer's logit is above the foil's; `top_1`: how often it is the highest of all."""
    logits = batch_logits(model, prompts.clean)[jnp.arange(len(prompts)), prompts.positions["end"]]
    at = lambda ids: logits[jnp.arange(len(prompts)), ids]
    return {
        "answer_over_foil": float(jnp.mean(at(prompts.answer) > at(prompts.foil))),
        "top_1": float(jnp.mean(logits.argmax(-1) == prompts.answer)),
    }


def repeated_tokens(vocabulary: int, n: int, *, length: int, seed: int) -> np.ndarray:
    """`[n 1+2*length]`: the end of text, then random tokens twice."""
    once = np.random.default_rng(seed).integers(1, vocabulary, (n, length), dtype=np.int32)
    return np.concatenate([np.zeros((n, 1), np.int32), once, once], axis=1)


def induction_accuracy(model: jc.Transformer, n: int, *, length: int = 24, seed: int = 0) -> dict[str, float]:
    """How often the next token is the highest of all, and the loss, over the second copy of random tokens after its first two."""
    tokens = repeated_tokens(model.d_vocab, n, length=length, seed=seed)
    second = batch_logits(model, tokens)[:, length + 2 : -1]
    logprob = jnp.take_along_axis(jax.nn.log_softmax(second), jnp.asarray(tokens[:, length + 3 :, None]), axis=-1)
    return {"top_1": float(jnp.mean(second.argmax(-1) == tokens[:, length + 3 :])), "loss": float(-logprob.mean())}


def measure(
    model: jc.Transformer, tokenizer: Any, *, n: int = 1000, sequences_of_text: int = 512, seed: int = 7
) -> dict:
    """Held-out loss of the model's mixture, and for the model of sentences the accuracy of each behaviour, by its kind."""
    mixture = MIXTURES[model.name]
    rows = sequences(tokenizer, mixture, sequences_of_text, seed=seed, split="held_out")
    found: dict[str, Any] = {"held_out_loss": text_loss(model, rows), "by_kind": {}}
    for kind in mixture:
        rows = sequences(tokenizer, {kind: 1.0}, sequences_of_text // 4, seed=seed + 1, split="held_out")
        found["by_kind"][kind] = text_loss(model, rows)
    if "ioi" not in mixture:
        return found
    for bos in (True, False):
        name = "with_bos" if bos else "without_bos"
        ioi = jc.data.ioi(tokenizer, n, template="mixed", seed=seed, split="held_out", bos=bos)
        agreement = {
            k: jc.data.subject_verb(
                tokenizer, min(n, how_many(k, "held_out")), kind=k, seed=seed, split="held_out", bos=bos
            )
            for k in AGREEMENT
        }
        found[name] = {kind: prompt_accuracy(model, p) for kind, p in {"ioi": ioi, **agreement}.items()}
    return found | {"induction": induction_accuracy(model, n // 4, length=min(24, (SEQ - 1) // 2), seed=seed)}


def reconstruct(sae: AbstractDictionary, x: jax.Array) -> jax.Array:
    """What the dictionary makes of the activation, without its error."""
    return sae.decode(sae.encode(x), x)


def splice(saes: Mapping[jc.Site, AbstractDictionary]) -> dict[str, jc.AbstractEdit]:
    """Edits that put reconstructions in place of activations, the error left out."""
    return {str(site): jc.Apply(jax.tree_util.Partial(reconstruct, sae)) for site, sae in saes.items()}


def measure_errors(
    model: jc.Transformer, tokenizer: Any, saes: Mapping[jc.Site, AbstractDictionary], *, n: int = 64, seed: int = 7
) -> dict[str, dict[str, float]]:
    """Of each site and kind of agreement, the error nodes' share of the sizes of all node effects, over prompts and positions."""
    found: dict[str, dict[str, float]] = {str(site): {} for site in saes}
    for kind in AGREEMENT:
        pairs = jc.data.subject_verb(
            tokenizer, min(n, how_many(kind, "held_out")), kind=kind, seed=seed, split="held_out"
        )
        effects = jc.node_effects(model, saes, pairs.clean, pairs.corrupt, pairs.metric())
        for site in saes:
            errors, latents = (float(jnp.abs(x[site]).sum()) for x in (effects.error, effects.acts))
            found[str(site)][kind] = errors / (errors + latents)
    return found


def kind_of(site: jc.Site) -> str:
    """`hook_resid_post` of `blocks.3.hook_resid_post`: dictionaries of one kind are spliced together."""
    return str(site).split(".", 2)[2]


def measure_dictionaries(
    model: jc.Transformer,
    tokenizer: Any,
    saes: Mapping[jc.Site, AbstractDictionary],
    *,
    sequences_of_text: int = 512,
    seed: int = 7,
) -> dict:
    """Of each dictionary L0 and variance explained; of each kind the loss with all its dictionaries spliced, the error left out."""
    rows = sequences(tokenizer, MIXTURES[model.name], sequences_of_text, seed=seed, split="held_out")
    found: dict[str, Any] = {"dictionaries": {}, "spliced": {}}
    record = jax.jit(jax.vmap(lambda row: jc.run(model, row, record=list(saes))[1]))
    parts = [record(jnp.asarray(rows[i : i + 128, :-1])) for i in range(0, min(len(rows), 256), 128)]
    for site, sae in saes.items():
        x = jnp.concatenate([part[site].reshape(-1, sae.d_in) for part in parts])
        acts = sae.encode(x)
        left = jnp.sum((x - sae.decode(acts, x)) ** 2) / jnp.sum((x - x.mean(axis=0)) ** 2)
        on = acts > 0
        found["dictionaries"][str(site)] = {
            "l0": float(on.sum(axis=-1).mean()),
            "variance_explained": float(1 - left),
            "never_on": int((~on.any(axis=0)).sum()),
            "d_sae": sae.d_sae,
        }
    clean = text_loss(model, rows)
    for kind in sorted({kind_of(site) for site in saes}):
        loss = text_loss(model, rows, splice({site: sae for site, sae in saes.items() if kind_of(site) == kind}))
        found["spliced"][kind] = {"loss": loss, "loss_increase": loss / clean - 1}
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(MIXTURES))
    name = parser.parse_args().name
    model, tokenizer = jc.from_pretrained(name), jc.load_tokenizer(name)
    saes = jc.load_saes(name)
    measured = measure(model, tokenizer) | measure_dictionaries(model, tokenizer, saes)
    if "ioi" in MIXTURES[name]:
        measured["error_shares"] = measure_errors(model, tokenizer, saes)
    text = json.dumps(measured, indent=1)
    (WEIGHTS / name / "measured.json").write_text(text + "\n", encoding="utf-8")
    print(text)
