"""How many programs a first call compiles: each takes a hundredth of a second even where it comes out of the compilation cache."""

import jax
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.runs import prepare_prompts, record_sides

from .helpers import assert_close, counting_programs


SITE = jc.Site.parse("blocks.1.hook_resid_post")


@pytest.fixture
def prompts():
    return jc.data.subject_verb(jc.load_tokenizer("tiny-gpt2"), 8, kind="rc", seed=0)


@pytest.fixture
def given(prompts):
    """What verbs take, in a process that has compiled nothing."""
    model, saes = jc.from_pretrained("tiny-gpt2"), jc.load_saes("tiny-gpt2")
    jax.clear_caches()
    return model, saes, prompts.clean, prompts.corrupt, prompts.metric()


def test_loading_takes_none():
    jax.clear_caches()
    with counting_programs() as programs:
        jc.from_pretrained("tiny-gpt2")
        jc.load_saes("tiny-gpt2")
        jc.data.ioi(jc.load_tokenizer("tiny-gpt2"), 4, seed=0)
    assert programs == []


def test_indexing_prompts_takes_one(prompts):
    jax.clear_caches()
    with counting_programs() as programs:
        some = prompts[[5, -1]]
    assert len(programs) == 1, programs
    for part, whole in zip(jax.tree.leaves(some), jax.tree.leaves(prompts), strict=True):
        assert np.array_equal(part, np.asarray(whole)[[5, -1]])


def test_running_both_sides_takes_few(given):
    model, _, clean, corrupt, metric = given
    problem = prepare_prompts(model, clean, corrupt, metric, None)
    with counting_programs() as programs:
        sides = record_sides(model, problem, [SITE])
    assert len(programs) <= 8, programs
    for side, tokens in zip(sides, (clean, corrupt), strict=True):
        assert side is not None
        want = jax.vmap(lambda tokens: jc.run(model, tokens, record=[SITE])[1][SITE])(tokens)
        assert_close(
            np.asarray(side.values[SITE])[:, : clean.shape[1]], want, tolerance=1e-4
        )  # another order of summation, in the float32 of the model's files


def test_finding_nodes_takes_few(given):
    with counting_programs() as programs:
        jc.discover(*given, node_threshold=0.2, edge_threshold=None)
    assert len(programs) <= 30, programs


def test_finding_edges_takes_few(given):
    with counting_programs() as programs:
        jc.discover(*given, node_threshold=0.2, edge_threshold=0.05)
    assert len(programs) <= 45, programs


def test_finding_heads_takes_few(given):
    model, _, *pairs = given
    with counting_programs() as programs:
        jc.head_effects(model, *pairs)
    assert len(programs) <= 22, programs
