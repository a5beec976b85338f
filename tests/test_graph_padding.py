"""Graphs of padded prompts: those of the prompts without padding, at other positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxcirc as jc
from jaxcirc.attribution_graphs import Change

from .graphs import REPLACEMENTS, whole
from .helpers import assert_close, model_named, needs_x64, tokens_for


SEQ = 5
SIDES = {"left": (3, 0), "right": (0, 2), "both": (1, 2)}
CASES = [("gpt2", "transcoders"), ("llama", "neurons"), ("gemma2", "saes"), ("no-norm-relu-bidirectional", "neurons")]


def padded(tokens, side):
    """The prompt with padding of tokens that have a place in the vocabulary, the mask, and how many come before."""
    before, behind = SIDES[side]
    filled = jnp.pad(tokens, (before, behind), constant_values=1)
    return filled, (jnp.arange(len(filled)) >= before) & (jnp.arange(len(filled)) < before + len(tokens)), before


def moved(table: pd.DataFrame, by: int, *columns: str) -> pd.DataFrame:
    """Positions further on; -1, of what has none, stays."""
    return table.assign(**{name: table[name].where(table[name] == -1, table[name] + by) for name in columns})


def same_table(got, want):
    pd.testing.assert_frame_equal(got, want, rtol=1e-9, atol=1e-11, check_dtype=False)


@needs_x64
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "kind"), CASES, ids=[", ".join(case) for case in CASES])
def test_the_graph_of_a_padded_prompt_is_that_without_padding(name, kind, side, tmp_path):
    model = model_named(name)
    dictionaries, tokens = REPLACEMENTS[kind](model), tokens_for(model, SEQ)
    long, mask, before = padded(tokens, side)
    for targets in ([1, 3], {"difference": jc.LogitDiff(2, 4)}):
        plain = whole(model, dictionaries, tokens, targets=targets)
        graph = whole(model, dictionaries, long, targets=targets, mask=mask)
        same_table(graph.nodes, moved(plain.nodes, before, "pos"))
        assert_close(graph.adjacency, plain.adjacency)
    # What the model itself makes of the padded prompt.
    logits, _ = jc.run(model, long, mask=mask)
    if model.logit_cap is None:
        assert_close(graph.values[-1], logits[before + SEQ - 1, 2] - logits[before + SEQ - 1, 4])
    assert graph.meta["tokens"] == long.tolist()
    path = tmp_path / "graph.safetensors"
    graph.save(path)
    graph = jc.AttributionGraph.load(path)
    chosen = [int(i) for i in plain.nodes.index[(plain.nodes.kind == "latent") & (plain.nodes.layer == 0)][:2]]
    given = model, dictionaries
    same_table(jc.check_graph(graph, *given, chosen), jc.check_graph(plain, *given, chosen))
    live = {"live_from": 0, "frozen": ()}
    same_table(jc.check_graph(graph, *given, chosen, **live), jc.check_graph(plain, *given, chosen, **live))
    edges = plain.strongest(6)
    for name in ("values", "heads", "bypass", "on_path"):
        got, want = (getattr(jc.head_loadings(each, *given, edges), name) for each in (graph, plain))
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)
    target, source = (int(jc.head_loadings(plain, *given).table(1)[end][0]) for end in ("target", "source"))
    got, want = (jc.explain_edge(each, *given, target, source, pairs=5).table() for each in (graph, plain))
    assert len(got)
    same_table(got, moved(want, before, "query", "key", "query_pos", "key_pos"))


@needs_x64
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "kind"), CASES, ids=[", ".join(case) for case in CASES])
def test_scores_and_interventions_at_a_padded_prompt(name, kind, side):
    model = model_named(name)
    dictionaries, tokens = REPLACEMENTS[kind](model), tokens_for(model, SEQ)
    long, mask, before = padded(tokens, side)
    got = jc.qk_attribution(model, dictionaries, long, 1, 0, before + 4, before + 3, pairs=9, mask=mask)
    want = jc.qk_attribution(model, dictionaries, tokens, 1, 0, 4, 3, pairs=9)
    assert (got.query, got.key) == (before + 4, before + 3)
    assert got.score == pytest.approx(want.score, rel=1e-10)
    same_table(got.nodes, moved(want.nodes, before, "pos"))
    same_table(got.table(), moved(want.table(), before, "query_pos", "key_pos"))
    graph = whole(model, dictionaries, tokens)
    (latent,) = graph.nodes[(graph.nodes.kind == "latent") & (graph.nodes.pos == 2)].head(1).itertuples()
    here = slice(before, before + SEQ)
    for more in ({}, {"live_from": 0, "frozen": ()}):
        change = lambda pos: [Change(latent.site, pos, int(latent.unit), jc.Scale(2.0))]
        got = jc.intervene(model, dictionaries, long, change(before + 2), mask=mask, **more)
        want = jc.intervene(model, dictionaries, tokens, change(2), **more)
        same = lambda x, y: np.testing.assert_allclose(x[here], y, rtol=1e-9, atol=1e-11)
        jax.tree.map(same, got, want)


def test_what_padding_refuses(untyped):
    model = model_named("gpt2")
    tokens = tokens_for(model, SEQ)
    left = jnp.arange(SEQ) > 1
    gap = jnp.arange(SEQ) != 2
    with pytest.raises(
        ValueError, match="attribution_graph: mask: padding is before or behind a prompt, and position 2 lies"
    ):
        jc.attribution_graph(model, None, tokens, mask=gap)
    with pytest.raises(ValueError, match=r"mask: expected one boolean a token, True where it is real, so bool\[5\]"):
        jc.attribution_graph(model, None, tokens, mask=left[1:])
    with pytest.raises(ValueError, match="mask: the prompt has no real token"):
        jc.attribution_graph(model, None, tokens, mask=jnp.zeros(SEQ, bool))
    with pytest.raises(ValueError, match="qk_attribution: key 1 is padding; real tokens are at 2 to 4"):
        jc.qk_attribution(model, None, tokens, 0, 0, 3, 1, mask=left)
    change = Change("blocks.0.mlp.hook_post", 1, 3, jc.Add(1.0))
    with pytest.raises(ValueError, match=r"intervene: .* at 1: that is padding; real tokens are at 2 to 4"):
        jc.intervene(model, None, tokens, [change], mask=left)
