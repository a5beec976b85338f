"""Our side of self-repair, and its check against runs of the whole model."""

import dataclasses
import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.parts import LayerNorm

from ._ours import make_model
from ._problems import Blocks, EPS
from ._repair import Repair


def model_of(blocks: Blocks) -> jc.Transformer:
    final = LayerNorm(None, None, EPS, (jc.Kind.FINAL_SCALE, jc.Kind.FINAL_NORMALIZED))
    return dataclasses.replace(make_model(blocks), ln_final=final)


def repair(problem: Repair):
    """A run of all heads."""
    given = model_of(problem.blocks), jnp.asarray(problem.tokens), jnp.asarray(problem.resample)
    return lambda: jc.self_repair(*given)


def repair_numbers(problem: Repair, found: jc.SelfRepair) -> np.ndarray:
    """`[head batch seq-1]`, the heads in the problem's order."""
    layer, head = problem.order().T
    return np.moveaxis(found.backup, 0, 2)[layer, head][..., :-1]


def check_repair(problem: Repair, numbers: np.ndarray, *, most: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A few heads on the first prompt, and the same from a run of the whole model with the head's `z` replaced."""
    model, (tokens, other) = model_of(problem.blocks), (jnp.asarray(x[0]) for x in (problem.tokens, problem.resample))
    sites = tuple(jc.Site(layer, jc.Kind.Z) for layer in range(problem.layers))
    clean, others = (_run(model, x, {}, sites=sites) for x in (tokens, other))
    want, rows = [], np.linspace(0, len(numbers) - 1, most).astype(int)
    for layer, head in problem.order()[rows]:
        member = lambda at, layer=layer, head=head: (np.arange(model.n_heads) == head)[:, None] & (at == layer)
        edits = {site: jc.Blend(member(site.layer), others[site]) for site in sites}
        after = _run(model, tokens, edits, sites=sites)
        later = [site for site in sites if (site.layer or 0) > layer]
        moved = [_direct(model, clean, after[site] - clean[site], site, tokens) for site in later]
        want.append(np.sum(moved, axis=0) if moved else np.zeros(len(tokens) - 1))
    return numbers[rows, 0], np.stack(want)


@ft.partial(jax.jit, static_argnames="sites")
def _run(model, tokens, edits, *, sites):
    record = {*sites, jc.Site(None, jc.Kind.FINAL_SCALE)}
    return jc.run(model, tokens, edits=edits, record=record)[1]


def _direct(model: jc.Transformer, clean, z, site: jc.Site, tokens) -> np.ndarray:
    """What the heads of a site with these outputs add to the logit of the next token, on the clean run's final scale."""
    out = jnp.einsum("shd,hdm->sm", z, model.blocks[site.layer or 0].attn.W_O)
    out = (out - out.mean(-1, keepdims=True)) / clean[jc.Site(None, jc.Kind.FINAL_SCALE)]
    u = model.W_U - model.W_U.mean(1, keepdims=True)
    return np.asarray((out[:-1] * u[:, tokens[1:]].T).sum(-1))
