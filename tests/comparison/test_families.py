"""Every family against transformers' own code: logits and all sites, in both spellings of the configuration, padded on either side."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from ..helpers import needs_x64


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from .families import CASES, family_activations, make_family, older_spelling, true_float64  # noqa: E402


SEQ = 9  # longer than any window


@pytest.fixture(scope="module", params=CASES)
def exact(request):
    """A model of transformers in true float64."""
    with true_float64():
        return make_family(request.param)


def tokens_of(model, seq=SEQ):
    return np.random.default_rng(1).integers(0, model.config.vocab_size, seq)


@jax.jit
def record_all(model, tokens, mask):
    return jc.run(model, tokens, record=jc.sites(model), mask=mask)[1]


def run_all(model, tokens, mask=None):
    return record_all(model, jnp.asarray(tokens, jnp.int32), mask)


def assert_same(ours, theirs, tolerance, rows=None):
    """At every site and position, relative to the largest entry there: the first position's norm may be a hundred times the others'."""
    assert {str(site) for site in ours} == set(theirs)
    for site, value in ours.items():
        value, want = np.asarray(value, np.float64), theirs[str(site)]
        if site.kind in (jc.Kind.ATTN_SCORES, jc.Kind.PATTERN):
            want = np.where(want < -1e30, -np.inf, want)  # masked
            value, want = (np.moveaxis(x, 0, -1) for x in (value, want))  # [q_seq k_seq head]
            value, want = (x if rows is None else x[rows][:, rows] for x in (value, want))
        elif rows is not None:
            value, want = value[rows], want[rows]
        assert value.shape == want.shape, f"{site}: {value.shape} and {want.shape}"
        finite = np.isfinite(want)
        assert (np.isfinite(value) == finite).all(), f"{site}: finite in one and not in the other"
        value, want = (np.where(finite, x, 0).reshape(len(x), -1) for x in (value, want))
        size = np.abs(want).max(axis=1)
        assert (size > 1e-6).all(), f"{site}: nothing to compare"
        error = (np.abs(value - want).max(axis=1) / size).max()
        assert error <= tolerance, f"{site}: relative error {error:.3g}"


def saved(theirs, folder, *, older=False):
    theirs.save_pretrained(folder)
    if older:
        path = folder / "config.json"
        path.write_text(json.dumps(older_spelling(json.loads(path.read_text()))))
    return folder


@needs_x64
@pytest.mark.parametrize("spelling", ["transformers 5", "transformers 4"])
def test_logits_and_every_site_in_float64(exact, spelling, tmp_path):
    ours = jc.from_pretrained(saved(exact, tmp_path, older=spelling == "transformers 4"), dtype=jnp.float64)
    tokens = tokens_of(exact)
    with true_float64():
        theirs = family_activations(exact, tokens)
    assert_same(run_all(ours, tokens), theirs, 1e-10)


@pytest.mark.parametrize("name", CASES)
def test_logits_and_every_site_in_float32(name):
    theirs = make_family(name)
    tokens = tokens_of(theirs)
    assert_same(run_all(jc.from_torch(theirs), tokens), family_activations(theirs, tokens), 1e-5)
