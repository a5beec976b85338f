"""Metrics: known answers, batches, misuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc._tap import bare_tap

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
    assert_close(over_batch(jc.LogitDiff(ANSWER, 4)), LOGITS[BATCH, -1, ANSWER] - LOGITS[:, -1, 4], tolerance=1e-6)
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


@needs_x64
@pytest.mark.parametrize("also_by_the_run", [False, True])
def test_kl_of_impossible_tokens(also_by_the_run):
    """A token to which the reference gives no probability adds nothing, in the value and in both derivatives on both sides."""
    impossible = np.array([True, False, False, True, False, True, False])
    reference = np.where(impossible, -np.inf, np.random.default_rng(1).normal(size=7))
    logits = np.where(impossible & also_by_the_run, -np.inf, LOGITS[0])
    p, q = (np.exp(log_softmax(x)) for x in (reference, logits[-1]))
    value = (p[~impossible] * np.log(p[~impossible] / q[~impossible])).sum()
    metric = lambda reference, logits: jc.KL(reference)(logits)
    arguments = jnp.asarray(reference), jnp.asarray(logits)
    assert_close(metric(*arguments), value, tolerance=1e-13)
    shift = np.log(np.where(impossible, 1, p) / np.where(impossible, 1, q)) - value
    for derivative in (jax.jacrev, jax.jacfwd):
        by_reference, by_logits = derivative(metric, argnums=(0, 1))(*arguments)
        assert_close(by_logits[-1], q - p, tolerance=1e-12)
        assert not np.asarray(by_logits[:-1]).any()
        assert_close(by_reference, p * shift, tolerance=1e-12)


def test_kl_is_infinite_where_the_run_alone_makes_a_token_impossible():
    logits = jnp.array([[-jnp.inf, 0.0, 1.0]])
    assert jc.KL(jnp.zeros(3))(logits) == jnp.inf
    assert jc.LogProb(0)(logits) == -jnp.inf
    assert jc.LogProb(0)(jnp.array([[-1e30, 0.0, 1.0]])) < -1e29
    assert jnp.isfinite(jax.grad(jc.LogProb(1))(logits)).all()
    assert jnp.isfinite(jax.grad(jc.LogitDiff(1, 2))(logits)).all()


class Everywhere(jc.LogitDiff):
    """A metric of a user's own, made from one of ours, that reads all positions."""

    def __call__(self, logits):
        return (logits[:, self.answer] - logits[:, self.foil]).sum()


class Twice(jc.LogitDiff):
    """Another, which still reads one position."""

    def at(self, logits):
        return 2 * super().at(logits)


class OfAll(jc.AbstractMetric):
    """One that reads everything."""

    answer: jax.Array

    def __call__(self, logits):
        return logits[:, self.answer].sum()

    def token_ids(self):
        return (self.answer,)


class Squared(jc.AbstractPositionMetric):
    """One that reads one position."""

    answer: jax.Array
    position: jax.Array

    def at(self, logits):
        return logits[self.answer] ** 2

    def token_ids(self):
        return (self.answer,)


OWN = {
    "a subclass that reads all positions": (Everywhere(np.array([2, 4]), np.array([3, 1])), False),
    "a subclass that reads one": (Twice(np.array([2, 4]), np.array([3, 1])), True),
    "one of all positions": (OfAll(jnp.array([2, 4])), False),
    "one of one position": (Squared(jnp.array([2, 4]), jnp.array([-1, 2])), True),
}


@pytest.mark.parametrize("name", OWN)
def test_a_metric_says_what_it_reads(name):
    """In every kind of run: with nodes at the last block, where only what is read would be run, and by integrated gradients."""
    from jaxcirc._metrics import position_read
    from jaxcirc._run import run_metric

    metric, one_position = OWN[name]
    assert (position_read(metric) is not None) == one_position
    model, tokens = make_model(jax.random.key(0)), jnp.asarray([[1, 5, 2, 8], [3, 3, 7, 0]], jnp.int32)
    want = jax.vmap(lambda metric, tokens: metric(jc.run(model, tokens)[0]))(metric, tokens)
    got = jax.vmap(lambda metric, tokens: run_metric(model, metric, tokens)[0])(metric, tokens)
    assert_close(got, want, tolerance=1e-5 if want.dtype == jnp.float32 else 1e-12)
    corrupt = tokens.at[:, 1].set(9)
    moved = jax.vmap(lambda metric, tokens: metric(jc.run(model, tokens)[0]))(metric, corrupt) - want
    saes = {"blocks.0.hook_resid_pre": jc.saes.Identity(16, unit=jnp.ones((), model.dtype))}
    method = jc.IntegratedGradients(24, "gauss-legendre")
    effects = jc.node_effects(model, saes, tokens, corrupt, metric, method=method)
    assert_close(effects.total, moved, tolerance=1e-4 if want.dtype == jnp.float32 else 1e-10)
    assert_close(effects.nodes("blocks.0.hook_resid_pre").sum((1, 2)), moved, tolerance=1e-3)  # of the integration


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("foil", [2, None])
def test_a_difference_of_logits_unembeds_two_tokens(tied, foil):
    """No value as large as the vocabulary is computed for it; a log probability takes one."""
    from jaxcirc._run import metric_of_last

    model = make_model(jax.random.key(0), vocab=500, vocab_out=None if tied else 500)
    resid = jnp.asarray(np.random.default_rng(0).normal(size=(4, model.d_model)), model.dtype)
    largest = lambda metric: max(
        value.aval.size
        for equation in jax.make_jaxpr(lambda metric, resid: metric_of_last(model, metric, resid))(metric, resid).eqns
        for value in equation.outvars
    )
    difference, probability = jc.LogitDiff(5, foil, 1), jc.LogProb(5, 1)
    assert largest(difference) < 500 <= largest(probability)
    logits = model.unembed(resid, bare_tap())
    assert_close(metric_of_last(model, difference, resid), difference(logits), tolerance=1e-5)
    missing = jax.jit(lambda answer: metric_of_last(model, jc.LogitDiff(answer, foil), resid))(jnp.asarray(500))
    assert jnp.isnan(missing)


def test_the_last_block_runs_at_one_position_for_a_metric_of_ones_own(monkeypatch):
    from jaxcirc.runs import _gradients

    metric, _ = OWN["one of one position"]
    model, tokens = make_model(jax.random.key(0)), jnp.asarray([[1, 5, 2, 8], [3, 3, 7, 0]], jnp.int32)
    saes = {"blocks.0.hook_resid_pre": jc.saes.Identity(16, unit=jnp.ones((), model.dtype))}
    found = {}
    for shorter in (True, False):
        monkeypatch.setattr(_gradients, "_worth_a_program", lambda model, worlds, shorter=shorter: shorter)
        effects = jc.node_effects(model, saes, tokens, tokens.at[:, 1].set(9), metric)
        found[shorter] = effects.nodes("blocks.0.hook_resid_pre")
    assert_close(found[True], found[False], tolerance=1e-4 if model.dtype == jnp.float32 else 1e-12)


def test_an_id_that_is_not_there_is_not_a_number_under_jit():
    """On the host it is an error, by the verbs; where ids are traced, NaN is left."""
    at = jax.jit(lambda answer, position: jc.LogitDiff(answer, jnp.asarray(0), position)(jnp.asarray(LOGITS[0])))
    position = jnp.asarray(-1)
    assert jnp.isfinite(at(jnp.asarray(6), position))
    for answer in (7, -1, 100):
        assert jnp.isnan(at(jnp.asarray(answer), position))
    for beyond in (5, -6):
        assert jnp.isnan(at(jnp.asarray(6), jnp.asarray(beyond)))
    assert jnp.isnan(jax.jit(lambda answer: jc.LogProb(answer)(jnp.asarray(LOGITS[0])))(jnp.asarray(9)))


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


def test_one_number_is_for_all_of_a_batch():
    same = lambda one, other: jax.tree.map(np.testing.assert_array_equal, one, other)
    same(jc.LogitDiff(7, 6, POSITION), jc.LogitDiff([7] * 4, [6] * 4, POSITION))
    same(jc.LogitDiff(7, FOIL), jc.LogitDiff([7] * 4, FOIL, [-1] * 4))
    same(jc.LogProb(7, POSITION), jc.LogProb([7] * 4, POSITION))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (
            lambda: jc.LogitDiff(ANSWER, FOIL[:2]),
            ValueError,
            r"foil must be one number or have the batch's shape \(4,\)",
        ),
        (lambda: jc.LogitDiff(ANSWER, FOIL, POSITION[:3]), ValueError, r"position must be one number .* got \(3,\)"),
        (
            lambda: jc.LogitDiff(2, FOIL, POSITION[:3]),
            ValueError,
            r"position must be one number .* shape \(4,\), got \(3,\)",
        ),
        (lambda: jc.LogProb(2.5), TypeError, "answer must be of integers, got dtype float"),
        (lambda: jc.LogProb(2, True), TypeError, "position must be of integers, got dtype bool"),
        (lambda: jc.KL(LOGITS[:, 0], POSITION[:2]), ValueError, r"position must be one number .* got \(2,\)"),
        (lambda: jc.KL(1.0), ValueError, "expected reference logits"),
        (lambda: jc.KL(np.arange(5)), TypeError, "reference logits are floating-point numbers, got dtype int"),
        (lambda: jc.KL(np.full((2, 5), -np.inf)), ValueError, "reference logits of prompt 0 are no distribution"),
        (lambda: jc.KL(np.array([0.0, np.nan])), ValueError, "reference logits are no distribution"),
        (lambda: jc.LogitDiff(3, 3), ValueError, "the answer and the foil are the same token, 3"),
        (
            lambda: jc.LogitDiff(ANSWER, [3, 0, 1, 1]),
            ValueError,
            "answer and the foil of prompt 1 are the same token, 0",
        ),
        (lambda: jc.LogitDiff(ANSWER, 6), ValueError, "answer and the foil of prompt 2 are the same token, 6"),
    ],
)
def test_misuse(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("answer", "foil", "name"), [(" is", " are", "answer"), ([3, 4], [" is", " are"], "foil")])
def test_text_is_told_what_encodes_it(answer, foil, name):
    message = rf"A metric's {name} is token ids, got the text ' is'\. .* tokenizer\.encode\(' is'\)"
    with pytest.raises(TypeError, match=message):
        jc.LogitDiff(answer, foil)


def test_tokens_of_a_metric_must_be_the_models():
    from jaxcirc._run import check_metric

    model = make_model(jax.random.key(0), vocab_out=7)
    check_metric(model, jc.LogitDiff(6, 0))
    check_metric(model, lambda logits: logits[-1, 0])
    with pytest.raises(ValueError, match=r"Token id 7 at \[1\] is outside the vocabulary of random, 0 to 6"):
        check_metric(model, jc.LogitDiff(np.array([0, 0]), np.array([1, 7])))
    with pytest.raises(ValueError, match="Token id -1"):
        check_metric(model, jc.LogProb(-1))
