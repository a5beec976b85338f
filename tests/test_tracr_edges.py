"""Edges of compiled programs, whose circuits are known: patching and the search find them, gradients do not."""

import numpy as np
import pytest

from .helpers import example, needs_real, needs_x64, REAL


pytestmark = [needs_real, needs_x64]


@pytest.fixture(scope="module")
def study():
    return example("tracr_edges")


@pytest.mark.parametrize("name", ["frac_prevs_causal", "sort"])
def test_patching_and_the_search_find_the_circuit(study, name):
    program = study.load(REAL / "tracr", name)
    graph, effects = program.graph, study.effects_of(program, None)
    assert effects[program.acting].min() > 0.1
    assert not effects[graph.edges & ~program.true].any()
    assert study.auroc(effects[graph.edges], program.acting[graph.edges]) == 1
    assert (study.search(program).kept == program.acting).all()


def test_gradients_miss_edges(study):
    """Saturated queries and keys, and MLPs that are steps, are flat at the clean input."""
    program = study.load(REAL / "tracr", "sort")
    effects, scores = study.effects_of(program, None), study.scores_of(program, None)
    missed = program.graph.mask(["embed->m0", "m0->a1.h0.q", "m0->a1.h0.k", "a1.h0->m1"])
    assert effects[missed].min() > 0.1
    assert np.abs(scores[missed]).max() < 1e-6
    assert not scores[program.graph.edges & ~program.true].any()


def test_trained_masks_keep_the_circuit(study):
    """As many edges as act, of the largest scores."""
    pytest.importorskip("optax")
    import jax
    import jax.numpy as jnp

    import jaxcirc as jc

    program = study.load(REAL / "tracr", "frac_prevs_causal")
    clean, corrupt, metric = study.answers_of(program)
    count = int(program.acting.sum())
    share = count / program.graph.n_edges
    found = jc.patching.train_masks(
        program.model, clean, corrupt, metric, graph=program.graph, share=share, steps=150, key=jax.random.key(0)
    )
    assert (found.kept == program.acting).all()
    after = jc.patch_edges(program.model, clean, corrupt, metric, jnp.asarray(found.kept), graph=program.graph)
    assert np.abs(np.asarray(after).mean() - found.full) < 1e-6
