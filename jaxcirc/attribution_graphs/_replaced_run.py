"""Runs of the replacement model: latents move, what dictionaries do not reconstruct stays as it was, and the rest follows or is held."""

import functools as ft
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._edits import Apply
from .._precision import wide
from .._run import run
from .._sites import Kind, Site
from .._typing import Keys, Logits, Resid, Tokens
from ..models import Transformer
from ..parts import LayerNorm
from ..parts._held_norm import weighed
from ._changes import Moves
from ._latent_sites import LatentSites


class State(eqx.Module):
    """What a run of the replacement model comes to.

    **Attributes:**

    - `logits` `[seq d_vocab]`: as the model gives them, capped where it caps them.
    - `final` `[seq d_model]`: what the unembedding reads, so that uncapped logits are `final @ model.W_U + model.b_U`.
    - `acts[site]`, `pre[site]` `[seq d_sae]`: latents, and their pre-activations. Of neurons these are `mlp.hook_post` and `mlp.hook_pre`;
      of those of a gated MLP their values with the gates of the clean run, which are linear in what the MLP reads.
    """

    logits: Logits
    final: Resid
    acts: dict[Site, Float[Array, "seq _"]]
    pre: dict[Site, Float[Array, "seq _"]]


class Clean(eqx.Module):
    """What other runs need of the clean one: the values that are `held`, what dictionaries `read`, the latents `acts`, by what their
    normalisations stretch what they write (`scales`), and the whole `outputs` that latents and errors stand for. Of the neurons whose gates
    are held: the `gates`, what these multiply (`gated`), and their `posts`.
    """

    held: dict[Site, Float[Array, "..."]]
    read: dict[Site, Float[Array, "seq _"]]
    acts: dict[Site, Float[Array, "seq _"]]
    scales: dict[Site, Float[Array, " seq"]]
    gates: dict[Site, Float[Array, "seq _"]]
    gated: dict[Site, Float[Array, "seq _"]]
    posts: dict[Site, Float[Array, "seq _"]]
    outputs: dict[Site, Float[Array, "seq ..."]]


# What moved latents write, by their site and the one written to; of several runs with an axis in front.
Rows = Mapping[tuple[Site, Site], Float[Array, "... _"]]


@ft.partial(jax.jit, static_argnames=("frozen", "record"))
def run_clean(
    model: Transformer,
    latents: LatentSites,
    tokens: Tokens,
    mask: Keys,
    *,
    frozen: frozenset[Site],
    record: frozenset[Site],
) -> tuple[State, Clean]:
    """Runs the prompt as it is, and keeps what is held and the latents; of those in `record` the state has them, too."""
    reads = {site: latents.reads(site) for site in latents.sites}
    observed = {site: latents.observed(site) for site in record}
    neurons = {*latents.seen_through, *(latents.gated & record)}
    gates = {post: Site(post.layer, Kind.MLP_GATE) for post in neurons}
    of_neurons = {*neurons, *map(latents.into_neurons, neurons), *gates.values()}
    wanted = {*frozen, *latents.sites, *reads.values(), *observed.values(), *of_neurons, *_final(model)}
    logits, cache = run(model, tokens, record=wanted, mask=mask)
    x = {site: flat(cache[reads[site]]) for site in latents.sites}
    acts = {site: latents.encode(site, x[site]) for site in latents.sites}
    clean = Clean(
        held={site: cache[site] for site in frozen},
        read=x,
        acts=acts,
        scales={site: latents.decoder_scale(site, x[site]) for site in latents.sites},
        gates={post: cache[gates[post]] for post in neurons},
        gated={post: cache[latents.into_neurons(post)] for post in neurons},
        posts={post: cache[post] for post in neurons},
        outputs={site: cache[site] for site in latents.sites},
    )
    pre = _pre_activations(latents, clean, {site: flat(cache[observed[site]]) for site in record}, frozenset())
    return State(logits, _final_read(model, cache), {site: acts[site] for site in record}, pre), clean


@ft.partial(jax.jit, static_argnames=("live", "record"))
def run_moved(
    model: Transformer,
    latents: LatentSites,
    tokens: Tokens,
    mask: Keys,
    clean: Clean,
    moves: dict[Site, Moves],
    rows: Rows,
    *,
    live: frozenset[Site],
    record: frozenset[Site],
) -> State:
    """Runs the prompt with latents moved. Those at `live` sites are encoded anew, the others start from their clean values; errors and what
    is held are those of the clean run.
    """
    trace = _Trace(latents, clean, moves, rows, live)
    observed = {site: latents.observed(site) for site in record}
    wanted = {*observed.values(), *_final(model)}
    logits, cache = run(model, tokens, edits=trace.edits(), record=wanted, mask=mask)
    # What the latents of an output read is its value before they replace it.
    seen = lambda site: trace.read[site] if site in trace.read else flat(cache[site])
    pre = _pre_activations(latents, clean, {site: seen(observed[site]) for site in record}, live)
    acts = {site: trace.acts(site) for site in record}
    return State(logits, _final_read(model, cache), acts, pre)


def _pre_activations(
    latents: LatentSites, clean: Clean, observed: Mapping[Site, Float[Array, "seq _"]], live: frozenset[Site]
) -> dict[Site, Float[Array, "seq _"]]:
    """Computes pre-activations; where latents are not live all that they depend on by no straight line is held."""
    gates = lambda site: clean.gates[site] if site in latents.gated and latents.is_neurons(site) else 1
    held_at = lambda site: None if site in live else clean.read[site]
    return {site: latents.pre_activations(site, x, held_at(site)) * gates(site) for site, x in observed.items()}


class _Trace:
    """The edits of one run, which see what it came by before; it lives only while the run traces."""

    def __init__(self, latents: LatentSites, clean: Clean, moves, rows: Rows, live: frozenset[Site]):
        self.latents, self.clean, self.moves, self.rows, self.live = latents, clean, moves, rows, live
        self.read: dict[Site, Array] = {}
        self.made: dict[Site, Array] = {}
        # Latents that keep their clean values read of an MLP what it makes with its gates held: what an edge of a graph says.
        live_layers = {site.layer for site in live}
        self._held_gates = {post for post in latents.seen_through if post.layer not in live_layers}

    def edits(self) -> dict[Site, Apply]:
        sites = self.latents.sites
        touched = {*self.clean.held, *sites, *(self.latents.reads(site) for site in sites)}
        touched |= {site for post in self._held_gates for site in (post, self.latents.into_neurons(post))}
        return {site: Apply(ft.partial(self.visit, site)) for site in touched}

    def visit(self, site: Site, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Holds the value, remembers it, and puts what latents and errors make in its place, as each is due."""
        if site in self.clean.held:
            x = self.clean.held[site]
        elif site in self._held_gates:
            moved = self.read[self.latents.into_neurons(site)] - self.clean.gated[site]
            x = self.clean.posts[site] + self.clean.gates[site] * moved
        self.read[site] = flat(x)
        if site not in self.latents.sites or site in self.clean.held:
            return x
        return self.clean.outputs[site] + self.change(site).reshape(x.shape)

    def acts(self, site: Site) -> Float[Array, "seq d_sae"]:
        """The latents at a site that the run has come by."""
        if site not in self.made:
            before = self.clean.acts[site]
            now = self.latents.encode(site, self.read[self.latents.reads(site)]) if site in self.live else before
            self.made[site] = self.moves[site](now) if site in self.moves else now
        return self.made[site]

    def change(self, target: Site) -> Float[Array, "seq d_out"]:
        """By how much latents, and what is passed on linearly, write there otherwise than in the clean run."""
        total = jnp.zeros_like(flat(self.clean.outputs[target]))
        for site in self.latents.sites:
            if target in self.latents.targets(site):
                written = self.written(site, target)
                total = total if written is None else total + written * self.clean.scales[target][:, None]
        skip = self.latents.skip(target)
        if skip is None:
            return total
        read = self.latents.reads(target)
        # [seq d_in] · [d_in d_out] -> [seq d_out]
        return total + (self.read[read] - self.clean.read[target]) @ skip

    def written(self, site: Site, target: Site) -> Float[Array, "seq d_out"] | None:
        if site in self.live:
            return self.latents.write(site, target, self.acts(site) - self.clean.acts[site])
        if site not in self.moves:
            return None
        # [seq n] · [n d_out] -> [seq d_out]
        return self.moves[site].steps(self.clean.acts[site]) @ self.rows[site, target]


def flat(x: Float[Array, "seq ..."]) -> Float[Array, "seq width"]:
    """One vector a position."""
    return x.reshape(x.shape[0], -1)


def _final(model: Transformer) -> tuple[Site, ...]:
    """The site of what the unembedding reads, up to a norm's weight and bias."""
    return (Site(model.n_layers - 1, Kind.RESID_POST) if model.ln_final is None else Site(None, Kind.FINAL_NORMALIZED),)


def _final_read(model: Transformer, cache: Mapping[Site, Array]) -> Resid:
    norm, (site,) = model.ln_final, _final(model)
    if norm is None:
        return cache[site]
    y = weighed(norm, cache[site])
    return y + wide(norm.bias) if isinstance(norm, LayerNorm) and norm.bias is not None else y
