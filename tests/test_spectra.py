"""Singular values of Jacobians layer by layer, and the tokens that their vectors stand for."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from .helpers import assert_close, counting_programs, make_model, model_named, tokens_for


SEQ, RANK = 5, 3
EMBED, LOGITS = Site(None, Kind.EMBED), Site(None, Kind.LOGITS)
PRE, MID, POST = (ft.partial(Site, kind=kind) for kind in (Kind.RESID_PRE, Kind.RESID_MID, Kind.RESID_POST))


@pytest.mark.parametrize("name", ["gpt-neo", "gemma2"])
@pytest.mark.parametrize("hold", ["nothing", "detached"])
def test_they_are_those_of_the_matrices(name, hold):
    """From the embedding to each layer, and of each layer's own; singular values and what the vectors span."""
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    frozen = jc.frozen.detached(model) if hold == "detached" else ()
    targets = [POST(layer) for layer in range(model.n_layers)]
    of_layers = [PRE(layer) for layer in range(model.n_layers)]
    for source in (EMBED, of_layers):
        found = jc.jacobian.spectra(
            model, tokens, source, targets, rank=RANK, frozen=frozen, target_pos=[-1], oversample=16
        )
        sources = [source] * model.n_layers if source == EMBED else source
        assert found.edges == tuple(zip(sources, targets, strict=True))
        assert found.values.shape == (model.n_layers, RANK)
        assert found.left.shape == (model.n_layers, RANK, 1, 16)
        assert found.right.shape == (model.n_layers, RANK, SEQ, 16)
        for i, ends in enumerate(found.edges):
            J = jc.edge(model, tokens, *ends, frozen=frozen, target_pos=[-1])
            matrix = np.asarray(J.as_matrix()).reshape(16, -1)
            assert_close(found.values[i], np.linalg.svd(matrix, compute_uv=False)[:RANK])
            flat = lambda x: np.asarray(x).reshape(RANK, -1)
            left, right = flat(found.left[i]), flat(found.right[i])
            assert_close(right @ matrix.T, np.asarray(found.values[i])[:, None] * left)  # J v = s u
            assert_close(left @ left.T, np.eye(RANK))


def test_any_sites_of_one_shape():
    """Inside blocks, before and behind them, by name; by several blocks at once, at some positions of the source."""
    model = make_model(jax.random.key(4), layers=3, vocab_out=16)
    tokens = tokens_for(model, SEQ)
    sources = ["blocks.0.hook_resid_mid", "blocks.0.hook_resid_post", "hook_pos_embed"]
    targets = ["blocks.2.hook_resid_mid", "logits", "blocks.1.hook_resid_pre"]
    found = jc.jacobian.spectra(model, tokens, sources, targets, rank=2, source_pos=[1, 3], oversample=30)
    for i, ends in enumerate(zip(sources, targets, strict=True)):
        J = jc.edge(model, tokens, *ends, source_pos=[1, 3])
        values = np.linalg.svd(np.asarray(J.as_matrix()).reshape(SEQ * 16, -1), compute_uv=False)
        assert_close(found.values[i], values[:2])


def test_blocks_share_their_programs():
    """As many for six layers as for three, but for the run that gives what enters each block."""
    compiled = []
    for layers in (3, 6):
        model = make_model(jax.random.key(7), layers=layers, d_mlp=26)  # of a size that no other test has
        with counting_programs() as programs:
            jc.jacobian.spectra(
                model, tokens_for(model, SEQ), EMBED, [POST(layer) for layer in range(layers)], rank=RANK
            )
        compiled.append(list(programs))
    sweeps = [sum(name.removeprefix("jit(").removesuffix(")") in ("jvp", "vjp") for name in each) for each in compiled]
    assert sweeps == [2, 0]
    assert len(compiled[1]) < 8


def test_a_left_vector_names_what_the_model_says():
    """In a trained model, of the detached Jacobian to the last layer: a token that it predicts is among the first of a leading vector."""
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    tokens = jnp.asarray(tokenizer.encode("The teachers that the doctor likes"))
    held = jc.frozen.detached(model)
    found = jc.jacobian.spectra(
        model, tokens, EMBED, ["blocks.3.hook_resid_post"], rank=4, frozen=held, target_pos=[-1]
    )
    directions = jnp.concatenate([found.left[0, :, 0], -found.left[0, :, 0]])
    ids, _ = jc.decode(model, directions).top(10)
    said = jax.lax.top_k(jc.run(model, tokens)[0][-1], 3)[1]
    assert np.isin(said, ids).any()


ALL = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, EMBED, []), ValueError, "spectra: no targets"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, EMBED, ALL[0]), TypeError, "expected a list of sites, got one"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, [EMBED] * 3, ALL), ValueError, "got 3 for 2"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, EMBED, [*ALL, "logits"]), ValueError, "at the targets have shapes"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, EMBED, ALL, rank=0), ValueError, "spectra: rank is how many"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, EMBED, ALL, rank=500), ValueError, "rank is from 1 to 80"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, ALL[1], ALL[:1]), ValueError, "Are they swapped"),
        (lambda model, tokens: jc.jacobian.spectra(model, tokens, EMBED, ALL, target_pos=[9]), ValueError, "9"),
        (lambda model, tokens: jc.jacobian.intercept(model, tokens, ALL[1], ALL[0]), ValueError, "Are they swapped"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untyped")
def test_misuse(call, kind, message):
    model = model_named("gpt2")
    with pytest.raises(kind, match=message):
        call(model, tokens_for(model, SEQ))
