"""Brute force for means over a corpus: the Jacobian of every position, by forward mode of the block's own code, added up."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._tap import EditEach, Tap


def corpus_for(model, seed: int = 0):
    """Prompts of which some have padding, on the right and on the left, and what each position counts, nothing at some."""
    rng = np.random.default_rng(seed)
    tokens, mask, weights = rng.integers(0, model.d_vocab, (4, 6)), np.ones((4, 6), bool), rng.random((4, 6))
    mask[1, 4:], mask[2, :2], weights[0, :3] = False, False, 0
    return tokens.astype(np.int32), mask, weights


def values_at(model, tokens, mask, sites):
    """`{site: [position …]}`, prompt by prompt."""
    found = [
        jc.run(model, jnp.asarray(t), mask=jnp.asarray(m), record=sites)[1] for t, m in zip(tokens, mask, strict=True)
    ]
    return {site: np.concatenate([np.asarray(each[site]) for each in found]) for site in map(Site.parse, sites)}


def jacobians(model, values, source: Site, target: Site, held=()):
    """`[position d_target d_source]` around the MLP of a block; `values` are those of the source."""
    block = model.blocks[source.layer]
    kinds = frozenset(site.kind for site in held if site.layer == source.layer)
    return np.asarray(_jacobians(block, jnp.asarray(values), source.kind, target.kind, kinds))


@ft.partial(jax.jit, static_argnums=(2, 3, 4))
def _jacobians(block, values, source, target, kinds):
    def one(x):
        tap = Tap({}, EditEach(lambda site: jc.Detach() if site.kind in kinds else None), frozenset(), layer=0)
        if source == Kind.MLP_IN:
            out = block.mlp(x[None], tap)
            return (out if block.ln2_post is None else block.ln2_post(out, tap))[0]
        return (block.feed if target == Kind.RESID_POST else block._mlp)(x[None], tap)[0]

    return jax.vmap(jax.jacfwd(one))(values)
