"""Edges and node effects from their definitions: dictionaries spliced into the run, full Jacobians by `jacrev`, nothing gathered.

Slow, dense, and by another route than the library's: that computes cotangents in closed form from the plain model's gradient.
"""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.saes import Gated, JumpReLU, ReLU, SAE, Standardise, TopK, Transcoder

from .helpers import by_numpy


def random_arrays(key, width, d_sae):
    """Encoder, its bias, decoder, its bias."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # by numpy: it compiles nothing
    random = lambda *shape, scale=1.0: jax.device_put(scale * rng.normal(size=shape) / shape[0] ** 0.5)
    return random(width, d_sae), random(d_sae, scale=0.1), random(d_sae, width), random(width, scale=0.1)


def random_sae(key, site, width, d_sae, activation=None, **more):
    return SAE(*random_arrays(key, width, d_sae), activation or ReLU(), site, **more)


def random_saes(key, model, kinds=(Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST), alike=False):
    """Dictionaries on every site of `kinds` and at the embedding, none as wide as the model: of different widths and families, or all
    alike, for which much fewer programs are compiled."""
    families = [ReLU(), JumpReLU(jnp.asarray(0.2)), TopK(5), None]
    sites = [Site(0, Kind.RESID_PRE)] + [Site(layer, kind) for layer in range(model.n_layers) for kind in kinds]
    saes = {}
    for i, site in enumerate(sites):
        key = jax.random.fold_in(key, i)
        i = 0 if alike else i
        width = {Kind.Z: model.n_heads * model.d_head, Kind.MLP_POST: 24}.get(site.kind, model.d_model)
        d_sae = width + 3 + i
        family = families[i % len(families)] or Gated(
            jnp.full(d_sae, 0.1), jnp.full(d_sae, 0.05), jnp.full(d_sae, -0.05)
        )
        normalisation = Standardise() if i % 5 == 3 else None
        saes[site] = random_sae(key, site, width, d_sae, family, centred=i % 2 == 0, normalisation=normalisation)
    return saes


def random_transcoder(key, layer, width, d_sae):
    reads, site = Site(layer, Kind.LN2_NORMALIZED), Site(layer, Kind.MLP_OUT)
    W_skip = 0.3 * jax.random.normal(jax.random.fold_in(key, 4), (width, width)) / width**0.5
    return Transcoder(*random_arrays(key, width, d_sae), ReLU(), reads, site, W_skip=W_skip)


@by_numpy
def node_gradients(model, saes, tokens, metric):
    """Gradients of the metric with respect to all latents and errors, every dictionary spliced in; one sequence."""
    parts = [part for site in saes for part in (site.acts, site.error)]
    cache = jc.run(model, tokens, saes=saes, record=parts)[1]

    def value(additions):
        return metric(jc.run(model, tokens, saes=saes, edits={s: jc.Add(x) for s, x in additions.items()})[0])

    return jax.grad(value)({site: jnp.zeros_like(x) for site, x in cache.items()})


def node_values(model, saes, tokens):
    return record(model, tokens, saes, [part for site in saes for part in (site.acts, site.error)])


def record(model, tokens, saes, sites):
    return _record(model, tokens, saes, tuple(sites))


@ft.partial(by_numpy, static_argnames=("sites",))
def _record(model, tokens, saes, sites):
    return jc.run(model, tokens, saes=saes, record=sites)[1]


@ft.partial(by_numpy, static_argnames=("source", "target"))
def _jacobian(steps, model, tokens, saes, held, source, target):
    """Of the target's latents and error with respect to steps of the source's latents and error."""
    edits = {site: jc.Replace(value) for site, value in held.items()}

    def downstream(steps):
        added = {part: jc.Add(step) for part, step in zip((source.acts, source.error), steps, strict=True)}
        record = [target.acts, target.error]
        cache = jc.run(model, tokens, saes=saes, edits=edits | added, record=record)[1]
        return cache[target.acts], cache[target.error].reshape(tokens.shape[0], -1)

    return jax.jacrev(downstream)(steps)


def edges(model, saes, clean, corrupt, metric, source, target):
    """`E[target_pos target_node source_pos source_node]` for one sequence: gradient x Jacobian, others held, x difference."""
    between = [site for site in saes if source < site < target]
    held = record(model, clean, {}, between)
    before, after = node_values(model, saes, clean), node_values(model, saes, corrupt)
    d_acts, d_error = (np.asarray(after[part]) - np.asarray(before[part]) for part in (source.acts, source.error))
    gradient = node_gradients(model, saes, clean, metric)
    spliced, steps = (
        {site: saes[site] for site in (source, target)},
        (jnp.zeros(d_acts.shape), jnp.zeros(d_error.shape)),
    )
    jacobian = _jacobian(steps, model, clean, spliced, held, source, target)
    (acts_acts, acts_error), (error_acts, error_error) = jax.tree.map(np.asarray, jacobian)
    g_acts, g_error = np.asarray(gradient[target.acts]), np.asarray(gradient[target.error]).reshape(clean.shape[0], -1)
    error_error = error_error.reshape(*error_error.shape[:3], -1)
    d_error, acts_error = d_error.reshape(clean.shape[0], -1), acts_error.reshape(*acts_error.shape[:3], -1)
    seq, f_t, f_s = clean.shape[0], g_acts.shape[1], d_acts.shape[1]
    out = np.zeros((seq, f_t + 1, seq, f_s + 1))
    out[:, :-1, :, :-1] = np.einsum("tk,tksj,sj->tksj", g_acts, acts_acts, d_acts)
    out[:, :-1, :, -1] = np.einsum("tk,tksd,sd->tks", g_acts, acts_error, d_error)
    out[:, -1, :, :-1] = np.einsum("td,tdsj,sj->tsj", g_error, error_acts, d_acts)
    out[:, -1, :, -1] = np.einsum("td,tdse,se->ts", g_error, error_error, d_error)
    return out
