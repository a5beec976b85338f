"""Text that goes on from a prompt, with latents moved at chosen positions and, if they are open-ended, at those that come."""

import functools as ft
from collections.abc import Mapping, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import check_count, check_kind, check_number
from .._edits import AbstractEdit, Apply
from .._indexing import take
from .._run import check_tokens, NOTHING
from .._sites import Kind, Site
from .._tap import bare_tap, Tap
from .._typing import Tokens
from ..models import check_known, Transformer
from ..parts import KVCache
from ..runs import padded_length
from ._changes import Change, check_changes, Moves, moves_of
from ._given import Transcoders
from ._intervene import rows_of_moves
from ._latent_sites import find_latents, LatentSites
from ._replaced_run import flat, Rows


class Generation(eqx.Module):
    """What follows a prompt: `tokens` `[seq]`, the new ones alone, and the log-probability `[seq]` of each where it was chosen, in nats and
    at temperature 1.
    """

    tokens: Int[Array, " seq"]
    log_probs: Float[Array, " seq"]


def generate(
    model: Transformer,
    tokens: Tokens,
    n: int,
    *,
    transcoders: Transcoders = NOTHING,
    changes: Sequence[Change] = (),
    temperature: float = 0.0,
    key: PRNGKeyArray | None = None,
) -> Generation:
    """Goes on from a prompt by `n` tokens, with latents scaled, moved or set.

    At a position where a latent is to be changed, what it then writes more or less is added to what the model itself computes: MLPs,
    patterns and norms are live, as there is no clean run of what is not written yet. Without changes it is the model's own text.

    **Arguments:**

    - `tokens` `[seq]`: the prompt. - `n`: how many more, as many as the context has room for.
    - `transcoders`: dictionaries by site, or a cross-layer transcoder; `{}` for neurons alone.
    - `changes`: such as `Change(site, slice(len(tokens), None), unit, jc.Add(4.0))`; positions count on behind the prompt.
    - `temperature`: 0 takes the likeliest token; else tokens are drawn, and logits are divided by it first.
    - `key`: to draw with, as from `jax.random.key(0)`.

    **Returns:** the new tokens, and their log-probabilities.

    **Raises:** `ValueError` for a model that attends in both directions, too little context, latents or positions that are not there, a
    temperature below 0, and one above 0 without a key.

    The prompt is run once, and then each token by itself beside the keys and values of those before; lengths are filled up, so that other
    prompts of about this length, and other changes of as many latents, run the same program.

    >>> jc.generate(model, tokens, 3).tokens.shape
    (3,)
    """
    check_tokens(model, tokens)
    check_count("generate: n", "tokens to generate", n)
    check_number("generate: temperature", temperature)
    if temperature < 0:
        raise ValueError(f"generate: temperature is 0 for the likeliest token, or above 0; got {temperature}.")
    if key is None and temperature > 0:
        raise ValueError(
            "generate: above temperature 0 tokens are drawn, which takes a key. Give key=jax.random.key(0), or temperature=0."
        )
    seq = len(tokens)
    _check_model(model, seq + n)
    latents = find_latents("generate", model, transcoders)
    check_kind("generate: changes", changes, Sequence, "a list of changes")
    places = "prompt and new tokens"
    found = check_changes("generate", latents, changes, seq + n, of=places) if changes else []
    length = padded_length(seq + n, model.most_positions)
    prompt = np.zeros(padded_length(seq, model.most_positions), np.int32)
    prompt[:seq] = tokens
    moves = moves_of(found, seq + n, length, model.activation_dtype)
    given = model, latents, moves, rows_of_moves(latents, moves), jnp.asarray(prompt), seq, n
    key = jax.random.key(0) if key is None else key
    return jax.tree.map(lambda x: x[:n], _generate(*given, float(temperature), key, length=length))


def _check_model(model: Transformer, length: int) -> None:
    if not model.causal:
        raise ValueError(f"generate: {model.name} attends in both directions, so no token follows from those before.")
    if length > model.most_positions:
        raise ValueError(
            f"generate: prompt and new tokens are {length}, and {model.name} has a context of {model.n_ctx}. Ask for fewer."
        )
    check_known("generate", model, "attn")  # others have no keys and values to keep


@ft.partial(jax.jit, static_argnames="length")
def _generate(
    model: Transformer,
    latents: LatentSites,
    moves: dict[Site, Moves],
    rows: Rows,
    prompt: Tokens,
    seq: Int[Array, ""],
    n: Int[Array, ""],
    temperature: Float[Array, ""],
    key: PRNGKeyArray,
    *,
    length: int,
) -> Generation:
    """Fills a buffer of `length` tokens, of which the first `n` behind the prompt's `seq` are new."""
    masks = model.masks(length, None)
    written = Generation(jnp.zeros(length, jnp.int32), jnp.zeros(length, model.activation_dtype))

    def chosen(logits: Float[Array, " d_vocab"], i: Int[Array, ""], written: Generation) -> tuple[Array, Generation]:
        warm = logits / jnp.where(temperature > 0, temperature, 1).astype(logits.dtype)
        drawn = jax.random.categorical(jax.random.fold_in(key, i), warm)
        token = jnp.where(temperature > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)
        log_probs = jax.nn.log_softmax(logits)
        return token, Generation(written.tokens.at[i].set(token), written.log_probs.at[i].set(log_probs[token]))

    def at_position(cache: tuple[Array, Array], at: Int[Array, ""]) -> KVCache:
        k, v = cache
        return KVCache(k, v, at)

    def one_more(i, state):
        buffer, caches, token, written = state
        at = (seq + i).astype(jnp.int32)
        buffer = buffer.at[at].set(token)
        here = take(model.embed(buffer, bare_tap()), at[None])
        tap = _tap(model, latents, _at_positions(moves, at, 1), rows)
        for layer, (block, mask) in enumerate(zip(model.blocks, masks, strict=True)):
            here = block(here, take(mask, at[None]), tap.at(layer), at_position(caches[layer], at))
        caches = [at_position(cache, at).updated(*_kept(model, tap, i)) for i, cache in enumerate(caches)]
        return buffer, caches, *chosen(model.unembed(here, bare_tap())[0], i + 1, written)

    tap = _tap(model, latents, _at_positions(moves, jnp.zeros((), jnp.int32), len(prompt)), rows)
    logits = take(model(prompt, tap), seq - 1)
    room = lambda x: jnp.pad(x, [(0, length - len(x)), (0, 0), (0, 0)])
    caches = [tuple(map(room, _kept(model, tap, layer))) for layer in range(model.n_layers)]
    buffer = jnp.pad(prompt, (0, length - len(prompt)))
    token, written = chosen(logits, jnp.zeros((), jnp.int32), written)
    return jax.lax.fori_loop(0, n - 1, one_more, (buffer, caches, token, written))[-1]


def _at_positions(moves: dict[Site, Moves], first: Int[Array, ""], count: int) -> dict[Site, Moves]:
    """The same moves as arrays of `count` positions, from the `first` on."""
    part = lambda at: jax.lax.dynamic_slice_in_dim(at, first, count, axis=1)
    return {site: eqx.tree_at(lambda m: m.at, each, part(each.at)) for site, each in moves.items()}


def _tap(model: Transformer, latents: LatentSites, moves: dict[Site, Moves], rows: Rows) -> Tap:
    """A tap that moves latents, and records keys and values as they are kept."""
    kept = {Site(layer, kind) for layer in range(model.n_layers) for kind in (Kind.V, _keys(model, layer))}
    return Tap(NOTHING, _Steering(latents, moves, rows).edits(), kept)


def _keys(model: Transformer, layer: int) -> Kind:
    return Kind.ROT_K if model.blocks[layer].attn.places_keys else Kind.K


def _kept(model: Transformer, tap: Tap, layer: int) -> tuple[Array, Array]:
    return tap.cache[Site(layer, _keys(model, layer))], tap.cache[Site(layer, Kind.V)]


class _Steering:
    """Edits that add what latents, changed, write otherwise; it lives only while the run traces."""

    def __init__(self, latents: LatentSites, moves: Mapping[Site, Moves], rows: Rows):
        self.latents, self.moves, self.rows = latents, moves, rows
        self.read: dict[Site, Array] = {}

    def edits(self) -> dict[Site, AbstractEdit]:
        touched = {self.latents.reads(site) for site in self.moves} | {target for _, target in self.rows}
        return {site: Apply(ft.partial(self.visit, site)) for site in sorted(touched)}

    def visit(self, site: Site, x: Float[Array, "..."]) -> Float[Array, "..."]:
        self.read[site] = flat(x)
        for (source, target), rows in self.rows.items():
            if target == site:
                read = self.read[self.latents.reads(source)]
                # [seq n] · [n d_out] -> [seq d_out]
                step = self.moves[source].steps(self.latents.encode(source, read)) @ rows
                x = x + (step * self.latents.decoder_scale(source, read)[:, None]).reshape(x.shape)
        return x
