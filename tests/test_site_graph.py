"""Which sites feed which, put together from blocks, against the model's own code in one piece."""

import jax
import jax.numpy as jnp
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._tap import Tap
from jaxcirc.graph import _sites, reaches
from jaxcirc.graph._sites import graph_of, site_graph
from jaxcirc.parts import Block

from .dictionaries import spliced_at
from .helpers import counting_calls, make_model, model_named, MODELS
from .odd_parts import ODD, odd_model


def in_one_piece(model, saes):
    forward = lambda edits, model, saes, token: model(token, Tap(saes, edits, frozenset()))
    return graph_of(forward, model, saes, jax.ShapeDtypeStruct((1,), jnp.int32))


@pytest.mark.parametrize("spliced", [False, True])
@pytest.mark.parametrize("name", [*MODELS, *ODD])
def test_the_graph_of_blocks_is_that_of_the_model(name, spliced):
    model = odd_model(name) if name in ODD else model_named(name)
    there = jc.sites(model)
    at = [Site(None, Kind.EMBED), Site(0, Kind.RESID_PRE), Site(1, Kind.ATTN_OUT), Site(1, Kind.RESID_POST)]
    saes = {site: spliced_at("relu", model, site) for site in at if site in there} if spliced else {}
    graph = site_graph(model, saes)
    assert {*there} <= graph.keys()
    assert sum(map(len, graph.values())) > len(there) / 2
    assert graph == in_one_piece(model, saes)
    assert [*graph] == sorted(graph)


@pytest.mark.parametrize("reads", [Site(1, Kind.LN2_NORMALIZED), Site(0, Kind.LN2_NORMALIZED)])
def test_a_transcoder_reads_in_its_block_or_in_another(reads):
    model, at = model_named("gpt2"), Site(1, Kind.MLP_OUT)
    saes = {at: spliced_at("transcoder-skip", model, at, 3, reads)}
    graph = site_graph(model, saes)
    assert at.acts in graph[reads]
    assert graph == in_one_piece(model, saes)


def test_alike_blocks_are_traced_once():
    """Whatever their weights; of a block with another part, or with a dictionary, its own graph is looked at."""
    model = make_model(jax.random.key(0), layers=6, d_mlp=28)
    pre = [Site(layer, Kind.RESID_PRE) for layer in (2, 4)]
    saes = {site: spliced_at("relu", model, site) for site in pre}
    for remembered in (_sites._site_graph, _sites._graph_of_block):  # of other tests with such blocks
        remembered.cache_clear()
    with counting_calls(Block, "__call__") as traces:
        assert reaches(model, Site(0, Kind.RESID_PRE), Site(5, Kind.RESID_POST))
        assert len(traces) == 1
        assert pre[1].acts in site_graph(model, saes)[Site(3, Kind.RESID_POST)]
        assert len(traces) == 2
