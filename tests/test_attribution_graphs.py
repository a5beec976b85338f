"""Attribution graphs: rows that sum to pre-activations, and edges that are what a frozen run changes by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .graphs import Frozen, REPLACEMENTS, whole
from .helpers import assert_close, model_named, MODELS, tokens_for


SEQ = 5
CASES = [
    (name, kind) for name in MODELS for kind in REPLACEMENTS if name != "attention-only" or kind in ("saes", "neurons")
]
# Every family with one kind of replacement, and every kind with several families.
ORACLE = [(name, list(REPLACEMENTS)[i % 4] if name != "attention-only" else "saes") for i, name in enumerate(MODELS)]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[", ".join(case) for case in CASES])
def test_rows_sum_to_pre_activations(name, kind):
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    graph = whole(model, REPLACEMENTS[kind](model), tokens)
    nodes, A, values = graph.nodes, graph.adjacency, graph.values
    read = nodes.kind.isin(["latent", "logit"]).to_numpy()
    assert (np.isfinite(values) == read).all()
    assert not A[~read].any()
    assert_close(A[read].sum(axis=1), values[read])
    layer, pos = nodes.layer.to_numpy(), nodes.pos.to_numpy()
    assert not A[layer[:, None] < layer].any()
    if model.causal:
        assert not A[(pos[:, None] < pos)].any()
    latents = nodes.kind == "latent"
    assert (nodes.activation[latents] != 0).all()
    assert nodes.activation[~latents].isna().all()
    assert 0 <= graph.replacement_score <= 1
    assert 0 <= graph.completeness_score <= 1


@pytest.mark.parametrize(("name", "kind"), ORACLE, ids=[", ".join(case) for case in ORACLE])
def test_an_edge_is_what_a_node_changes_in_a_frozen_run(name, kind):
    """Adding what any node writes once more changes every pre-activation by the entry of the adjacency matrix, as everything is held."""
    model = model_named(name)
    tokens = tokens_for(model, SEQ)
    dictionaries = REPLACEMENTS[kind](model)
    graph, frozen = whole(model, dictionaries, tokens), Frozen(model, dictionaries, tokens)
    nodes = graph.nodes
    vectors = {site: jnp.asarray(x, model.dtype) for site, x in frozen.vectors(nodes).items()}

    def values(steps):
        return frozen.pre_activations(frozen.values(steps), nodes)

    nothing = {site: jnp.zeros_like(x[0]) for site, x in vectors.items()}
    clean = values(nothing)
    read = nodes.kind.isin(["latent", "logit"]).to_numpy()
    assert_close(clean, graph.values[read])
    changes = jax.lax.map(lambda steps: values(steps) - clean, vectors, batch_size=64)
    writes = (nodes.kind != "logit").to_numpy() & ~((nodes.kind == "bias") & (nodes.layer == -1)).to_numpy()
    assert_close(changes.T[:, writes], graph.adjacency[read][:, writes])
