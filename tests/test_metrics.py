"""Metrics: known answers, batches, misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import assert_close, make_model, needs_x64


LOGITS = np.random.default_rng(0).normal(size=(4, 5, 7)) * 3  # [batch seq d_vocab]
ANSWER, FOIL, POSITION = np.array([2, 0, 6, 1]), np.array([3, 3, 0, 5]), np.array([-1, 0, 2, 4])
BATCH = np.arange(4)


def log_softmax(x):
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def over_batch(metric, logits=LOGITS):
    return jax.vmap(lambda metric, logits: metric(logits))(metric, jnp.asarray(logits))


def test_logit_diff():
    at = LOGITS[BATCH, POSITION]
    assert_close(over_batch(jc.LogitDiff(ANSWER, FOIL, POSITION)), at[BATCH, ANSWER] - at[BATCH, FOIL], tolerance=1e-6)
    assert_close(over_batch(jc.LogitDiff(ANSWER)), LOGITS[BATCH, -1, ANSWER], tolerance=1e-6)
    assert_close(over_batch(jc.LogitDiff(ANSWER, 0)), LOGITS[BATCH, -1, ANSWER] - LOGITS[:, -1, 0], tolerance=1e-6)
    assert_close(jc.LogitDiff(2, 1, 3)(jnp.asarray(LOGITS[0])), LOGITS[0, 3, 2] - LOGITS[0, 3, 1], tolerance=1e-6)


@needs_x64
def test_log_prob():
    want = log_softmax(LOGITS[BATCH, POSITION])[BATCH, ANSWER]
    assert_close(over_batch(jc.LogProb(ANSWER, POSITION)), want, tolerance=1e-13)


@needs_x64
def test_kl():
    reference = np.random.default_rng(1).normal(size=(4, 7))
    p, q = log_softmax(reference), log_softmax(LOGITS[BATCH, POSITION])
    assert_close(over_batch(jc.KL(reference, POSITION)), (np.exp(p) * (p - q)).sum(axis=-1), tolerance=1e-13)
    assert_close(over_batch(jc.KL(reference + 5.0, POSITION)), over_batch(jc.KL(reference, POSITION)), tolerance=1e-12)
    assert np.abs(over_batch(jc.KL(LOGITS[:, -1]))).max() < 1e-14
    # To second order in a step d of the logits it is half the variance of d under the reference.
    step = 1e-4 * np.random.default_rng(2).normal(size=7)
    weights = np.exp(p[0])
    variance = weights @ (step - weights @ step) ** 2
    moved = jc.KL(reference[0])(jnp.asarray(reference[0] + step)[None])
    assert_close(moved, variance / 2, tolerance=1e-3, mass=1e-10)


def test_large_logits_stay_finite():
    logits = jnp.array([[1e4, 0.0, -1e4]], jnp.float32)
    assert jc.LogProb(2)(logits) == -2e4
    assert jc.KL(jnp.array([1e4, 0.0, -1e4], jnp.float32))(-logits) == 2e4


def test_token_ids_are_what_is_read():
    assert [int(ids) for ids in jc.LogitDiff(3, 1).token_ids()] == [3, 1]
    assert [int(ids) for ids in jc.LogitDiff(3).token_ids()] == [3]
    assert [int(ids) for ids in jc.LogProb(3).token_ids()] == [3]
    assert jc.KL(LOGITS[0]).token_ids() == ()


def test_gradients_are_one_hot_differences():
    gradient = jax.grad(lambda logits: jc.LogitDiff(2, 1)(logits))(jnp.asarray(LOGITS[0]))
    assert gradient[-1].tolist() == [0, -1, 1, 0, 0, 0, 0]
    assert not gradient[:-1].any()


@pytest.mark.parametrize("metric", [jc.LogitDiff, jc.LogProb])
def test_a_batch_is_not_one_prompt(metric):
    with pytest.raises(ValueError, match=r"holds a batch of 4 prompts and was called on one sequence.*jax\.vmap"):
        metric(ANSWER)(jnp.asarray(LOGITS[0]))


def test_a_batch_of_references_is_not_one():
    with pytest.raises(ValueError, match="KL holds a batch of 4 prompts"):
        jc.KL(LOGITS[:, -1])(jnp.asarray(LOGITS[0]))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: jc.LogitDiff(ANSWER, FOIL[:2]),
            ValueError,
            r"foil must be one number or have the batch's shape \(4,\)",
        ),
        (lambda: jc.LogitDiff(ANSWER, FOIL, POSITION[:3]), ValueError, r"position must be one number .* got \(3,\)"),
        (lambda: jc.LogitDiff(2, FOIL), ValueError, r"foil must be one number .* shape \(\), got \(4,\)"),
        (lambda: jc.LogProb(2.5), TypeError, "answer must be of integers, got dtype float"),
        (lambda: jc.LogProb(2, True), TypeError, "position must be of integers, got dtype bool"),
        (lambda: jc.KL(LOGITS[:, 0], POSITION[:2]), ValueError, r"position must be one number .* got \(2,\)"),
        (lambda: jc.KL(1.0), ValueError, "expected reference logits"),
    ],
)
def test_misuse(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_tokens_of_a_metric_must_be_the_models():
    from jaxcirc._run import check_metric

    model = make_model(jax.random.key(0), vocab_out=7)
    check_metric(model, jc.LogitDiff(6, 0))
    check_metric(model, lambda logits: logits[-1, 0])
    with pytest.raises(ValueError, match=r"Token id 7 at \[1\] is outside the vocabulary of random, 0 to 6"):
        check_metric(model, jc.LogitDiff(np.array([0, 0]), np.array([1, 7])))
    with pytest.raises(ValueError, match="Token id -1"):
        check_metric(model, jc.LogProb(-1))
