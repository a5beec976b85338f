"""The registry of dictionaries over which their laws run: `(key, width, site) -> dictionary`, no parameter at its default."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest

import jaxcirc as jc
from jaxcirc._run import site_shapes
from jaxcirc._sites import layer_of
from jaxcirc.saes import (
    AbsTopK,
    AbstractDictionary,
    Gated,
    GroupMax,
    Identity,
    JumpReLU,
    Linear,
    ReLU,
    SAE,
    Standardise,
    TanhReLU,
    TopK,
    Transcoder,
    UnitNorm,
)

from .helpers import MODELS


def weights(key, d_in: int, d_out: int | None = None, d_sae: int = 20):
    """Random `W_enc`, `b_enc`, `W_dec`, `b_dec`."""
    d_out = d_in if d_out is None else d_out
    keys = jax.random.split(key, 4)
    shapes = ((d_in, d_sae), (d_sae,), (d_sae, d_out), (d_out,))
    return [jax.random.normal(k, shape) / 2 for k, shape in zip(keys, shapes, strict=True)]


def make_sae(key, width: int, site: jc.Site | None = None, activation=None, d_sae: int = 20, **settings) -> SAE:
    """A random SAE."""
    return SAE(*weights(key, width, d_sae=d_sae), ReLU() if activation is None else activation, site, **settings)


def gated(key, d_sae: int = 20) -> Gated:
    return Gated(*(jax.random.normal(k, (d_sae,)) / 2 for k in jax.random.split(key, 3)))


def thresholds(key, d_sae: int = 20) -> JumpReLU:
    return JumpReLU(jax.random.uniform(key, (d_sae,)))


def transcoder(key, width: int, site: jc.Site | None = None, activation=None, **settings) -> Transcoder:
    """A random transcoder: to the MLP's output it reads what the MLP reads, elsewhere the site itself."""
    reads = jc.Site(site.layer, jc.Kind.MLP_IN) if site is not None and site.kind == jc.Kind.MLP_OUT else site
    return Transcoder(*weights(key, width), ReLU() if activation is None else activation, reads, site, **settings)


DICTIONARIES: dict[str, Callable[..., AbstractDictionary]] = {
    "relu": make_sae,
    "relu-uncentred": lambda key, width, site=None: make_sae(key, width, site, centred=False),
    "tanh-relu": lambda key, width, site=None: make_sae(key, width, site, TanhReLU()),
    "linear": lambda key, width, site=None: make_sae(key, width, site, Linear()),
    "gated": lambda key, width, site=None: make_sae(key, width, site, gated(key)),
    "jumprelu": lambda key, width, site=None: make_sae(key, width, site, thresholds(key)),
    "batchtopk": lambda key, width, site=None: make_sae(key, width, site, JumpReLU(jnp.asarray(0.7))),
    "topk": lambda key, width, site=None: make_sae(key, width, site, TopK(3)),
    "topk-unrectified": lambda key, width, site=None: make_sae(key, width, site, TopK(15, rectified=False)),
    "groupmax": lambda key, width, site=None: make_sae(key, width, site, GroupMax(5)),
    "topk-standardised": lambda key, width, site=None: make_sae(key, width, site, TopK(4), normalisation=Standardise()),
    "relu-unit-norm": lambda key, width, site=None: make_sae(key, width, site, normalisation=UnitNorm()),
    "identity": lambda key, width, site=None: Identity(width, site),
    "transcoder": transcoder,
    "transcoder-input-bias": lambda key, width, site=None: transcoder(
        key, width, site, b_in=jnp.linspace(-1, 1, width)
    ),
    "transcoder-skip": lambda key, width, site=None: transcoder(
        key, width, site, W_skip=jax.random.normal(jax.random.fold_in(key, 7), (width, width)) / 2
    ),
    "transcoder-jumprelu": lambda key, width, site=None: transcoder(key, width, site, thresholds(key)),
    "gated-standardised": lambda key, width, site=None: make_sae(
        key, width, site, gated(key), normalisation=Standardise()
    ),
    "jumprelu-unit-norm": lambda key, width, site=None: make_sae(
        key, width, site, thresholds(key), centred=False, normalisation=UnitNorm()
    ),
    "transcoder-skip-topk": lambda key, width, site=None: transcoder(
        key, width, site, TopK(6), b_in=jnp.linspace(1, -1, width), W_skip=jnp.eye(width)[::-1]
    ),
    "abstopk": lambda key, width, site=None: make_sae(key, width, site, AbsTopK(5)),
}


def spliced_at(
    name: str, model: jc.Transformer, site: jc.Site, seed: int = 0, reads: jc.Site | None = None
) -> AbstractDictionary:
    """The registry's dictionary for a site of `model`, whatever its width; a transcoder that reads what the model has there, or `reads`."""
    width = lambda site: site_shapes(model, 1)[site].size
    sae = DICTIONARIES[name](jax.random.key(seed), width(site), site)
    if not isinstance(sae, Transcoder):
        return sae
    if site.kind == jc.Kind.MLP_OUT and model.ln_final is None:
        sae = dataclasses.replace(sae, reads=jc.Site(site.layer, model.blocks[layer_of(site)].mlp_reads))
    if reads is None:
        return sae
    W_enc, b_enc, W_dec, b_dec = weights(jax.random.key(seed), width(reads), width(site))
    W_skip = None if sae.W_skip is None else jax.random.normal(jax.random.key(seed + 1), (width(reads), width(site)))
    b_in = None if sae.b_in is None else jnp.linspace(-1, 1, width(reads))
    arrays = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "W_skip": W_skip, "b_in": b_in}
    return dataclasses.replace(sae, reads=reads, **arrays)


READING = [name for name, make in DICTIONARIES.items() if make(jax.random.key(0), 4).decoder_reads_input]
# `(name, kind, number)`: every dictionary with one of the models in turn, and those whose decoder reads its input with two, so that all
# models meet dictionaries of all families.
_WITH_MODELS = [
    (name, list(MODELS)[(i + 4 * turn) % len(MODELS)], i + turn)
    for i, name in enumerate(DICTIONARIES)
    for turn in range(1 + (name in READING))
]
in_models = pytest.mark.parametrize(
    ("name", "kind", "number"), _WITH_MODELS, ids=[f"{a}, {b}" for a, b, _ in _WITH_MODELS]
)
