"""`generate`: text that goes on from a prompt, with edits at any site, and latents moved, at chosen positions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from .._checks import check_count, check_kind, check_list, check_number
from .._edits import AbstractEdit
from .._indexing import counted_from_end
from .._run import check_model, check_token_ids, check_tokens, NOTHING
from .._sites import Site
from .._traced import check_untraced
from .._typing import Prompt
from ..attribution_graphs import Change
from ..attribution_graphs._changes import check_changes, moves_of
from ..attribution_graphs._given import Transcoders
from ..attribution_graphs._intervene import rows_of_moves
from ..attribution_graphs._latent_sites import find_latents, LatentSites
from ..data._encode import as_prompt
from ..jacobian._operator import random_key
from ..models import check_known, Transformer
from ..runs import padded_length, rounded_up
from ..saes import Saes
from ._loop import Acting, Asked, generated
from ._placed import nowhere, placed_edits
from ._result import Generation, read_text, shortened_to


def generate(
    model: Transformer,
    tokenizer: Any,
    prompt: Prompt,
    n: int = 20,
    *,
    edits: Mapping[Site, AbstractEdit] | Mapping[str, AbstractEdit] = NOTHING,
    saes: Saes = NOTHING,
    transcoders: Transcoders = NOTHING,
    changes: Sequence[Change] = (),
    temperature: float = 0.0,
    key: PRNGKeyArray | None = None,
    samples: int | None = None,
    stop: int | Sequence[int] | None = None,
    bos: bool | None = None,
) -> Generation:
    r"""Goes on from a prompt by up to `n` tokens, with edits at any site: steering.

    Each token is chosen from the logits of

    $$\mathtt{run}(model, [prompt, t_1 \dots t_{i-1}], saes, edits)$$

    at its last position, where edits act at every position, or at those of `jc.At(pos, edit)`. The prompt is run once, and then each token
    by itself beside the keys and values of those before.

    **Arguments:**

    - `tokenizer`: of the model, as `jc.load_tokenizer` gives it, or `None` for a prompt of token ids, whose result has no text.
    - `prompt`: a text, or token ids `[seq]`, which are taken as they stand.
    - `n`: how many more, as many as the context has room for.
    - `edits`: what happens at which site, as in `jc.run`, also at `site.acts` and `site.error` of dictionaries in `saes`. At every
      position; `jc.At("new", edit)` acts at the new tokens alone, `jc.At(slice(5, None), edit)` from position 5 on, in the prompt and
      behind it, `jc.At(slice(-1, None), edit)` from the prompt's last token on. A value may have a row for each of the first positions,
      such as what `jc.run` records of a prompt: then the edit acts where there are rows. An edit sees some positions at a time, so a
      function in `jc.Apply` has to treat each by itself; of scores and patterns it gets more keys than there are, which are masked.
    - `saes`: dictionaries to splice in, keyed by site.
    - `transcoders`, `changes`: latents to move with all else live, where the dictionaries are not spliced in: what they then write more or
      less is added. So latents of a cross-layer transcoder, too. Such as `Change(site, slice(-1, None), unit, jc.Add(4.0))`; positions are
      as in `jc.At`. Edits of the same site act first.
    - `temperature`: 0 takes the likeliest token; else tokens are drawn, and logits are divided by it first.
    - `key`: to draw with, as from `jax.random.key(0)`. The same key draws the same text.
    - `samples`: draws so many texts together, of which number `i` is the one that key `i` of `jax.random.split(key, samples)` draws.
    - `stop`: token ids behind which a text ends; by default the tokenizer's end-of-text token, `()` for none.
    - `bos`: whether the beginning-of-text token is put before a text, by the rule of the model's family unless given.

    **Returns:** a `Generation`: the new tokens, their log-probabilities, which are there, and the text.

    **Raises:** `ValueError` for an empty prompt, a model that attends in both directions, too little context, sites, latents or positions
    that are not there, values of another shape, a temperature below 0, one above 0 without a key, and several samples at 0; `TypeError` for
    a text without a tokenizer and arguments of another kind.

    Lengths are filled up, so that prompts of about this length, and edits of other values at other positions, run the same program; a
    function that `jc.Apply` is given is part of the program, unless it is a pytree.

    >>> direction = jnp.ones(model.d_model)
    >>> steered = {"blocks.0.hook_resid_post": jc.At("new", jc.Add(4.0 * direction))}
    >>> jc.generate(model, tokenizer, "The teachers that the doctor", 3, edits=steered).tokens.shape
    (3,)

    **Reference:** Turner et al. 2023, "Activation Addition: Steering Language Models Without Optimization", arXiv 2308.10248; Templeton et
    al. 2024, "Scaling Monosemanticity", Transformer Circuits, on text from a model with a feature clamped.
    """
    check_untraced("generate", model)
    asked = prepared(
        "generate",
        model,
        tokenizer,
        prompt,
        n,
        edits=edits,
        saes=saes,
        transcoders=transcoders,
        changes=changes,
        temperature=temperature,
        key=key,
        samples=samples,
        stop=stop,
        bos=bos,
    )
    return asked.text(asked.acting)


class Prepared(NamedTuple):
    """What was asked for, checked, and as the program takes it."""

    model: Transformer
    tokenizer: Any
    ids: Int[np.ndarray, " seq"]
    n: int
    acting: Acting
    asked: Asked
    key: Array
    length: int
    stop: list[int]

    def text(self, acting: Acting) -> Generation:
        """Generates, with this acting."""
        found = generated(self.model, acting, self.asked, self.key, length=self.length)
        tokens, log_probs, mask = shortened_to(self.n, found)
        given = (self.tokenizer, self.ids.tolist(), np.asarray(tokens), np.asarray(mask), self.stop)
        text = None if self.tokenizer is None else read_text(*given)
        return Generation(tokens, log_probs, mask, jnp.asarray(self.ids), text)

    @property
    def inactive(self) -> Acting:
        """The same that would act, acting nowhere: a run of the same program."""
        moves = {
            site: eqx.tree_at(lambda m: m.at, each, jnp.zeros_like(each.at)) for site, each in self.acting.moves.items()
        }
        return eqx.tree_at(lambda x: (x.edits, x.moves), self.acting, (nowhere(self.acting.edits), moves))


def prepared(
    verb: str,
    model: Transformer,
    tokenizer: Any,
    prompt: Prompt,
    n: int,
    *,
    edits,
    saes,
    transcoders,
    changes,
    temperature: float,
    key: Array | None,
    samples: int | None,
    stop: int | Sequence[int] | None,
    bos: bool | None,
) -> Prepared:
    """Checks what a verb that generates is given, before any work."""
    check_model(model)
    ids = as_prompt(verb, tokenizer, prompt, bos)
    check_tokens(model, ids)
    check_count(f"{verb}: n", "tokens to generate", n)
    keys = _keys(verb, temperature, key, samples)
    ends = _stops(verb, model, tokenizer, stop)
    seq = len(ids)
    _check_model(verb, model, seq + n)
    length = padded_length(seq + n, model.most_positions)
    given, placed = placed_edits(verb, model, saes, edits, seq, n, length)
    check_kind(f"{verb}: changes", changes, Sequence, "a list of changes")
    latents, moves = LatentSites({}, None, frozenset(), frozenset()), {}
    if changes or transcoders:
        latents = find_latents(verb, model, transcoders)
        moved = [_from_prompt(verb, change, seq) for change in changes]
        found = check_changes(verb, latents, moved, seq + n, of="prompt and new tokens") if moved else []
        moves = moves_of(found, seq + n, length, model.activation_dtype)
    acting = Acting(given, placed, latents, moves, rows_of_moves(latents, moves))
    filled = np.zeros(padded_length(seq, model.most_positions), np.int32)
    filled[:seq] = ids
    behind = np.full(rounded_up(max(len(ends), 1)), -1, np.int32)
    behind[: len(ends)] = ends
    numbers = np.int32(seq), np.int32(n), behind, np.asarray(temperature, model.activation_dtype)
    asked = Asked(jnp.asarray(filled), *map(jnp.asarray, numbers))
    return Prepared(model, tokenizer, ids, n, acting, asked, keys, length, ends)


def _keys(verb: str, temperature: float, key: Array | None, samples: int | None) -> Array:
    """The key of each sample; one alone where several were not asked for."""
    check_number(f"{verb}: temperature", temperature)
    if temperature < 0:
        raise ValueError(f"{verb}: temperature is 0 for the likeliest token, or above 0; got {temperature}.")
    if key is None and temperature > 0:
        raise ValueError(
            f"{verb}: above temperature 0 tokens are drawn, which takes a key. Give key=jax.random.key(0), or temperature=0."
        )
    given = random_key(verb, key)
    one = given if jnp.issubdtype(given.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(given)
    if samples is None:
        return one
    check_count(f"{verb}: samples", "texts to draw", samples)
    if temperature == 0:
        raise ValueError(f"{verb}: at temperature 0 all samples are one text. Give temperature=1.0, or no samples.")
    return jax.random.split(one, samples)


def _stops(verb: str, model: Transformer, tokenizer: Any, stop: int | Sequence[int] | None) -> list[int]:
    if stop is None:
        end = getattr(tokenizer, "eos_token_id", None)
        return [] if end is None or end >= model.d_vocab else [int(end)]
    single = isinstance(stop, int | np.integer) and not isinstance(stop, bool)
    ids = np.asarray([stop] if single else check_list(f"{verb}: stop", "token ids", stop))
    if not ids.size:
        return []
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{verb}: stop is a token id, or a list of them; got {stop!r}.")
    check_token_ids(model, ids)
    return ids.tolist()


def _from_prompt(verb: str, change: Any, seq: int) -> Any:
    """A change whose negative positions count back from the end of the prompt."""
    if not isinstance(change, Change):
        return change  # which is told of below
    if isinstance(change.pos, slice):
        return dataclasses.replace(change, pos=counted_from_end(change.pos, seq))
    if change.pos < -seq:
        raise ValueError(f"{verb}: {change}: the prompt has positions -{seq} to {seq - 1}.")
    return dataclasses.replace(change, pos=counted_from_end(change.pos, seq))


def _check_model(verb: str, model: Transformer, length: int) -> None:
    if not model.causal:
        raise ValueError(f"{verb}: {model.name} attends in both directions, so no token follows from those before.")
    if length > model.most_positions:
        raise ValueError(
            f"{verb}: prompt and new tokens are {length}, and {model.name} has a context of {model.n_ctx}. Ask for fewer."
        )
    check_known(verb, model, "attn")  # others have no keys and values to keep
