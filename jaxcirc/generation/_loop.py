"""The program that generates: the prompt in one run, then token by token beside the keys and values of those before."""

import functools as ft
from collections.abc import Mapping
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._edits import AbstractEdit, Apply
from .._indexing import take
from .._sites import Kind, Site
from .._tap import Tap
from .._typing import Tokens
from ..attribution_graphs._changes import Moves
from ..attribution_graphs._latent_sites import LatentSites
from ..attribution_graphs._replaced_run import flat, Rows
from ..models import Pieces, through_blocks, Transformer
from ..parts import KVCache
from ..saes import AbstractDictionary
from ._placed import Placed


class Acting(eqx.Module):
    """What acts on a run: dictionaries spliced in, edits, and latents that are moved, with the directions that they write."""

    saes: dict[Site, AbstractDictionary]
    edits: dict[Site, Placed]
    latents: LatentSites
    moves: dict[Site, Moves]
    rows: Rows


class Asked(NamedTuple):
    """A prompt of `seq` tokens, filled up, `n` more to generate, at which of them to stop, and how they are drawn."""

    prompt: Tokens
    seq: Int[Array, ""]
    n: Int[Array, ""]
    stop: Int[Array, " stop"]
    temperature: Float[Array, ""]


class _State(NamedTuple):
    """One text: its caches, its last token, whether it has stopped, and what was written."""

    caches: list[tuple[Array, Array]]
    token: Int[Array, ""]
    stopped: Bool[Array, ""]
    tokens: Int[Array, " new"]
    log_probs: Float[Array, " new"]
    mask: Bool[Array, " new"]


@ft.partial(jax.jit, static_argnames="length")
def generated(
    model: Transformer, acting: Acting, asked: Asked, keys: Array, *, length: int
) -> tuple[Int[Array, "*world new"], Float[Array, "*world new"], Bool[Array, "*world new"]]:
    """New tokens, their log-probabilities and which are there, in arrays of `length`, of which `n` are filled; for each of the keys, if
    they are several.
    """
    masks = model.masks(length, None)
    zero = jnp.zeros((), jnp.int32)

    def chosen(logits: Float[Array, " d_vocab"], i: Int[Array, ""], key: PRNGKeyArray, state: _State) -> _State:
        """Draws token `i` and writes it down, unless the text has stopped."""
        temperature = asked.temperature
        warm = logits / jnp.where(temperature > 0, temperature, 1).astype(logits.dtype)
        drawn = jax.random.categorical(jax.random.fold_in(key, i), warm)
        token = jnp.where(temperature > 0, drawn, jnp.argmax(logits)).astype(jnp.int32)
        token = jnp.where(state.stopped, state.token, token)
        log_prob = jnp.where(state.stopped, 0, jax.nn.log_softmax(logits)[token])
        return _State(
            state.caches,
            token,
            state.stopped | (token == asked.stop).any(),
            state.tokens.at[i].set(token),
            state.log_probs.at[i].set(log_prob),
            state.mask.at[i].set(~state.stopped),
        )

    def begun(key: PRNGKeyArray) -> _State:
        tap = _tap(model, acting, zero, len(asked.prompt))
        resid = model.embed(asked.prompt, tap)
        resid = through_blocks(model.blocks, model.masks(len(asked.prompt), None), resid, Pieces(tap), loops=False)
        last = (asked.seq - 1).astype(jnp.int32)
        logits = model.unembed(take(resid, last[None]), _tap(model, acting, last, 1))[0]
        room = lambda x: jnp.pad(x, [(0, length - len(x)), (0, 0), (0, 0)])
        kept = (_kept(model, tap, layer) for layer in range(model.n_layers))
        caches = [(room(k), room(v)) for k, v in kept]
        empty = jnp.zeros(length, jnp.int32), jnp.zeros(length, logits.dtype), jnp.zeros(length, bool)
        return chosen(logits, zero, key, _State(caches, zero, jnp.zeros((), bool), *empty))

    def one_more(i: Int[Array, ""], key: PRNGKeyArray, state: _State) -> _State:
        at = (asked.seq + i - 1).astype(jnp.int32)
        tap = _tap(model, acting, at, 1)
        here = model.embed(state.token[None], tap, first=at)
        caches = [KVCache(k, v, at) for k, v in state.caches]
        for layer, (block, mask) in enumerate(zip(model.blocks, masks, strict=True)):
            here = block(here, take(mask, at[None]), tap.at(layer), caches[layer])
        after = [cache.updated(*_kept(model, tap, layer)) for layer, cache in enumerate(caches)]
        return chosen(model.unembed(here, tap)[0], i, key, state._replace(caches=after))

    each = jax.vmap if keys.ndim else lambda f, **_: f
    step = each(one_more, in_axes=(None, 0, 0))
    more = lambda loop: (loop[0] < asked.n) & ~loop[1].stopped.all()
    go_on = lambda loop: (loop[0] + 1, step(loop[0], keys, loop[1]))
    _, state = jax.lax.while_loop(more, go_on, (zero + 1, each(begun)(keys)))
    # A text that has stopped goes on with the token at which it did, also behind the last step of the loop.
    tokens = jnp.where(state.mask, state.tokens, state.token[..., None])
    return tokens, state.log_probs, state.mask


def _tap(model: Transformer, acting: Acting, first: Int[Array, ""], count: int) -> Tap:
    """A tap for `count` positions from the `first` on, that records keys and values as they are kept."""
    kept = {Site(layer, kind) for layer in range(model.n_layers) for kind in (Kind.V, _keys(model, layer))}
    part = lambda at: jax.lax.dynamic_slice_in_dim(at, first, count, axis=1)
    moves = {site: eqx.tree_at(lambda m: m.at, each, part(each.at)) for site, each in acting.moves.items()}
    edits = {site: edit.at(first, count) for site, edit in acting.edits.items()}
    steering = _Steering(acting.latents, moves, acting.rows)
    both = {site: _after(edits.get(site), steering, site) for site in steering.sites()}
    return Tap(acting.saes, {**edits, **both}, kept)


def _keys(model: Transformer, layer: int) -> Kind:
    return Kind.ROT_K if model.blocks[layer].attn.places_keys else Kind.K


def _kept(model: Transformer, tap: Tap, layer: int) -> tuple[Array, Array]:
    return tap.cache[Site(layer, _keys(model, layer))], tap.cache[Site(layer, Kind.V)]


def _after(edit: AbstractEdit | None, steering: "_Steering", site: Site) -> AbstractEdit:
    """An edit, and then what moved latents add: latents read what downstream sees."""
    return Apply(lambda x: steering.visit(site, x if edit is None else edit(x)))


class _Steering:
    """Adds what latents, moved, write otherwise; it lives only while the run traces."""

    def __init__(self, latents: LatentSites, moves: Mapping[Site, Moves], rows: Rows):
        self.latents, self.moves, self.rows = latents, moves, rows
        self.read: dict[Site, Array] = {}

    def sites(self) -> list[Site]:
        return sorted({self.latents.reads(site) for site in self.moves} | {target for _, target in self.rows})

    def visit(self, site: Site, x: Float[Array, "..."]) -> Float[Array, "..."]:
        self.read[site] = flat(x)
        for (source, target), rows in self.rows.items():
            if target == site:
                read = self.read[self.latents.reads(source)]
                # [seq n] · [n d_out] -> [seq d_out]
                step = self.moves[source].steps(self.latents.encode(source, read)) @ rows
                x = x + (step * self.latents.decoder_scale(source, read)[:, None]).reshape(x.shape)
        return x
