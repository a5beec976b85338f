"""What is said of a model or a dictionary is no part of the programs that it runs."""

import copy
import dataclasses
import pickle

import jax
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site

from .dictionaries import DICTIONARIES
from .helpers import counting_calls, model_named, tokens_for


SITE = Site(1, Kind.MLP_OUT)


def test_models_and_dictionaries_that_differ_in_labels_alone_share_their_programs():
    """Also in a `jit` of the user's; and every result is of what was given."""
    model, sae = model_named("gpt2"), DICTIONARIES["relu"](jax.random.key(0), 16, SITE)
    others = (
        dataclasses.replace(model, name="another", W_E=model.W_E[::-1]),
        dataclasses.replace(sae, origin="elsewhere"),
    )
    tokens = tokens_for(model, 5)
    record = jax.jit(lambda model, sae: jc.run(model, tokens, saes={SITE: sae}, record=[SITE.acts])[1][SITE.acts])

    def use(model, sae):
        problem = model, {SITE: sae}, tokens[None], None, jc.LogitDiff(1)
        return record(model, sae), jc.node_effects(*problem, method=jc.Gradient()).acts[SITE]

    with counting_calls(jc.Transformer, "__call__") as traces:
        first = use(model, sae)
        count = len(traces)
        assert count > 0
        for one, other in zip(first, use(*others), strict=True):
            assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3
        assert len(traces) == count
        use(dataclasses.replace(model, causal=False), sae)
        assert len(traces) > count


@pytest.mark.parametrize("name", DICTIONARIES)
def test_labels_are_plain_words_that_go_where_the_dictionary_goes(name):
    sae = dataclasses.replace(DICTIONARIES[name](jax.random.key(0), 16, SITE), origin="a file")
    other = dataclasses.replace(sae, origin="another")
    assert jax.tree.structure(sae) == jax.tree.structure(other)
    assert (sae.origin, other.origin) == ("a file", "another")
    assert type(sae.origin) is str
    assert "a file" in repr(sae)
    copies = (
        pickle.loads(pickle.dumps(sae)),
        copy.deepcopy(sae),
        jax.tree.map(lambda x: x, sae),
        dataclasses.replace(sae, site=None),
    )
    assert {each.origin for each in copies} == {"a file"}
