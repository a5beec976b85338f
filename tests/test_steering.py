"""Nodes that are moved, against edited runs; and circuits with a part taken out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Site
from tests import oracle
from tests.helpers import assert_close, make_model, needs_x64
from tests.test_attribution import one, problem


pytestmark = needs_x64


@pytest.fixture(scope="module")
def arguments():
    return problem(batch=3, seq=4)


@pytest.fixture(scope="module")
def circuit(arguments):
    return jc.discover(*arguments, node_threshold=0.05, edge_threshold=0.02)


def chosen(circuit):
    """A latent and an error of an early site, and a latent and an error that they lead to."""
    rows = circuit.node_rows()
    first = lambda kind, site: next(row for row in rows if row.kind == kind and row.site == site)
    early, late = "blocks.0.hook_attn_out", "blocks.0.hook_resid_post"
    return [first(kind, site) for site in (early, late) for kind in ("latent", "error")]


@jax.jit
def metric_after(model, saes, tokens, metric, edits):
    return metric(jc.run(model, tokens, saes=saes, edits=edits)[0])


@pytest.fixture(scope="module")
def values(arguments):
    """All nodes of each prompt, `(clean, corrupt)`."""
    model, saes, clean, corrupt, _ = arguments
    of = lambda tokens: jax.tree.map(np.asarray, oracle.node_values(model, saes, tokens))
    return [(of(before), of(after)) for before, after in zip(clean, corrupt, strict=True)]


def moved_by_hand(arguments, values, rows, strength):
    """The mean change of the metric when the nodes of `rows` are moved, by one run a prompt with plain edits."""
    model, saes, clean, _, metric = arguments
    changes = []
    for i, (before, after) in enumerate(values):
        masks = {place: np.zeros(value.shape) for place, value in before.items()}
        for row in rows:
            site = Site.parse(row.site)
            where = slice(None) if row.pos is None else row.pos
            place, index = (site.error, (where,)) if row.kind == "error" else (site.acts, (where, row.unit))
            masks[place][index] = 1
        step = {place: strength * masks[place] * (after[place] - before[place]) for place in before}
        moved, still = ({place: jc.Add(factor * x) for place, x in step.items()} for factor in (1, 0))
        there, here = (metric_after(model, saes, clean[i], one(metric, i), edits) for edits in (moved, still))
        changes.append(float(there - here))
    return float(np.mean(changes))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_measured_is_a_run_with_the_node_moved(arguments, values, circuit, batch_size):
    rows = chosen(circuit)
    table = jc.steer(circuit, *arguments, [row.node for row in rows], strengths=(-1.0, 0.5, 1.0), batch_size=batch_size)
    assert len(table) == 3 * (len(rows) + 1)
    measured = table.set_index(["node", "strength"])["measured"]
    assert measured.abs().min() > 1e-4
    for strength in (-1.0, 0.5, 1.0):
        for row in rows:
            want = moved_by_hand(arguments, values, [row], strength)
            assert measured[row.node, strength] == pytest.approx(want, abs=1e-10)
        together = moved_by_hand(arguments, values, rows, strength)
        assert measured["all", strength] == pytest.approx(together, abs=1e-10)


def test_what_the_edges_predict(arguments, circuit):
    rows = chosen(circuit)
    names = [row.node for row in rows]
    table = jc.steer(circuit, *arguments, names, strengths=[0.5, 2.0]).set_index(["node", "strength"])
    edges = circuit.edge_rows()
    for row in rows:
        want = sum(edge.weight for edge in edges if edge.source == row.node)
        assert abs(want) > 1e-2
        assert table["predicted"][row.node, 2.0] == pytest.approx(2 * want)
        assert table["effect"][row.node, 0.5] == pytest.approx(row.effect / 2)
    want = sum(edge.weight for edge in edges if edge.source in names)
    assert table["predicted"]["all", 2.0] == pytest.approx(2 * want)


def test_positions_and_the_zero_baseline(arguments, values):
    model, saes, clean, _, metric = arguments
    given = (model, saes, clean, None, metric)
    circuit = jc.discover(*given, node_threshold=0.2, edge_threshold=0.05, aggregate="none")
    rows = [row for row in circuit.node_rows() if row.pos == 3][:3]
    table = jc.steer(circuit, *given, [row.node for row in rows])
    to_zero = [(before, jax.tree.map(np.zeros_like, before)) for before, _ in values]
    for row, measured in zip(rows, table["measured"], strict=False):
        assert abs(measured) > 1e-3
        assert measured == pytest.approx(moved_by_hand(arguments, to_zero, [row], 1.0), abs=1e-10)


def test_where_everything_is_linear_prediction_is_measurement():
    model = make_model(jax.random.key(5), norm="None", attn_only=True)
    saes = oracle.random_saes(jax.random.key(4), model, (jc.Kind.ATTN_OUT, jc.Kind.RESID_POST), alike=True)
    # All latents on, whatever comes: then the dictionaries are affine.
    saes = {site: dataclasses.replace(sae, b_enc=sae.b_enc + 100) for site, sae in saes.items()}
    given = (
        model,
        saes,
        jnp.array([[3], [5]]),
        jnp.array([[4], [1]]),
        jc.LogitDiff(jnp.array([1, 2]), jnp.array([4, 0])),
    )
    circuit = jc.discover(*given, node_threshold=0.0, edge_threshold=0.0, method=jc.Gradient())
    names = [row.node for row in circuit.node_rows()[:6]]
    table = jc.steer(circuit, *given, names, strengths=[1.0, -2.0])
    assert_close(table["predicted"], table["measured"], mass=0.1)
    assert_close(table["effect"], table["measured"])


def test_what_steering_refuses(arguments, circuit):
    model, saes, clean, _, metric = arguments
    with pytest.raises(
        ValueError, match=r"The circuit has no node 'blocks.0.hook_mlp_out/9999'; of the \d+ at this site"
    ):
        jc.steer(circuit, *arguments, ["blocks.0.hook_mlp_out/9999"])
    with pytest.raises(ValueError, match="no node was named"):
        jc.steer(circuit, *arguments, [])
    with pytest.raises(ValueError, match="effects are those of going to corrupt prompts, and these prompts go to zero"):
        jc.steer(circuit, model, saes, clean, None, metric, [circuit.node_rows()[0].node])
    other = dataclasses.replace(model, W_E=model.W_E * 1.1)
    with pytest.raises(ValueError, match="The circuit is of random, and the model is random, with other weights"):
        jc.steer(circuit, other, *arguments[1:], [circuit.node_rows()[0].node])


@pytest.mark.parametrize("level", ["nodes", "edges"])
def test_minimality_is_the_circuit_without_each_part(arguments, level):
    small = jc.discover(*arguments, node_threshold=0.3, edge_threshold=0.1)
    table = jc.minimality(small, *arguments, level=level, most=4)
    assert len(table) == 4
    assert table["lost"].is_monotonic_decreasing
    whole = jc.evaluate(small, *arguments, level=level)
    for row in table.to_dict("records"):
        if level == "nodes":
            rest = small.subgraph(set(small.nodes["node"]) - {row["node"]})
        else:
            ends = zip(small.edges["source"], small.edges["target"], strict=True)
            rest = jc.Circuit(small.nodes, small.edges[[e != (row["source"], row["target"]) for e in ends]], small.meta)
        without = jc.evaluate(rest, *arguments, level=level).faithfulness
        assert row["without"] == pytest.approx(without)
        assert row["lost"] == pytest.approx(whole.faithfulness - without)
    assert table["lost"].abs().max() > 1e-3
    with pytest.raises(ValueError, match="most is how many parts to try, at least 1; got 0"):
        jc.minimality(small, *arguments, most=0)
