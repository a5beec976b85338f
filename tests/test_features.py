"""Latents by latents: against jacrev of whole runs, the closed form without attention, moved latents; and what is refused."""

import dataclasses
import functools as ft
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._nn import gelu_new
from jaxcirc.features import _same
from jaxcirc.jacobian import _own
from jaxcirc.saes import Identity, Standardise, TopK

from .dictionaries import make_sae, thresholds, transcoder
from .helpers import assert_close, counting_calls, make_model, model_named, needs_x64, tokens_for


pytestmark = needs_x64

SEQ, LEAST = 6, 0.3
POST0, POST1 = Site(0, Kind.MLP_POST), Site(1, Kind.MLP_POST)
SUBSTITUTES = [(), ("source",), ("target",), ("source", "target")]


def dictionary(model, site, seed, make=make_sae, **settings):
    """A random dictionary for a site, whatever its width."""
    shape = jc.run(model, tokens_for(model, 2), record=[site])[1][site].shape
    return make(jax.random.key(seed), int(np.prod(shape[1:])), site, **settings)


def both(model, source, target, **settings):
    return {site: dictionary(model, site, seed, **settings) for seed, site in enumerate((source, target), start=3)}


def by_jacrev(model, saes, tokens, source, target, *, substitute):
    """`[target_seq target source_seq source]` and the latents, by jacrev of a run with both dictionaries spliced in."""
    replaced = [site for side, site in (("source", source), ("target", target)) if side in substitute]
    pair = {site: saes[site] for site in (source, target)}

    @jax.jit
    def run(step):
        edits = {site.error: jc.Replace(0.0) for site in replaced} | {source.acts: jc.Add(step)}
        cache = jc.run(model, tokens, saes=pair, edits=edits, record=[source.acts, target.acts])[1]
        return cache[target.acts], (cache[source.acts], cache[target.acts])

    return jax.jacrev(run, has_aux=True)(jnp.zeros((len(tokens), saes[source].d_sae)))


def check(model, saes, tokens, source, target, *, minimum=LEAST, positions="same", substitute=("source", "target")):
    """Every row against the whole Jacobian, and that no pair is missing."""
    how = {"minimum": minimum, "positions": positions, "substitute": substitute}
    got = jc.feature_jacobian(model, saes, tokens, source, target, **how)
    want, (before, after) = by_jacrev(model, saes, tokens, source, target, substitute=substitute)
    want, before, after = map(np.asarray, (want, before, after))
    p, j, q, i = np.nonzero((after > minimum)[:, :, None, None] & (before > minimum))
    kept = p == q if positions == "same" else (p >= q) | (not model.causal)
    rows = np.stack([p, j, q, i])[:, kept]
    np.testing.assert_array_equal(np.stack([got.position, got.target, got.source_position, got.source]), rows)
    assert len(got) > 20
    assert_close(got.gradient, want[tuple(rows)], mass=1e-2)
    assert_close(got.source_act, before[tuple(rows[2:])])
    assert_close(got.target_act, after[tuple(rows[:2])])
    return got


ENDS = {
    "hidden to hidden": ("gpt2", POST0, POST1),
    "one sublayer": ("gpt2", Site(1, Kind.RESID_MID), Site(1, Kind.MLP_OUT)),
    "through one attention": ("gpt-neo", Site(1, Kind.RESID_PRE), Site(1, Kind.ATTN_OUT)),
    "GPT-Neo, local attention": ("gpt-neo", POST0, POST1),
    "embedding to the end": ("lnpre", Site(None, Kind.EMBED), Site(1, Kind.RESID_POST)),
    "several blocks": ("gpt2-inverse-layer-scale", POST0, Site(2, Kind.MLP_POST)),
    "parallel blocks": ("parallel", Site(0, Kind.RESID_PRE), Site(1, Kind.MLP_OUT)),
    "attention only": ("attention-only", Site(0, Kind.ATTN_OUT), Site(1, Kind.Z)),
    "heads": ("gpt2", Site(0, Kind.Z), Site(1, Kind.V)),
    "in both directions, no norm": ("no-norm-relu-bidirectional", Site(0, Kind.RESID_PRE), Site(1, Kind.RESID_POST)),
    "in both directions, one attention": ("no-norm-relu-bidirectional", POST0, POST1),
}


@pytest.mark.parametrize("positions", ["same", "all"])
@pytest.mark.parametrize("name", ENDS)
def test_gradients_are_those_of_the_whole_run(name, positions):
    kind, source, target = ENDS[name]
    model = model_named(kind)
    check(model, both(model, source, target), tokens_for(model, SEQ), source, target, positions=positions)
