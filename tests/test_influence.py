"""Influence, pruning and scores of graphs, on small ones whose numbers can be said."""

import dataclasses

import numpy as np
import pytest

from jaxcirc.attribution_graphs._influence import (
    edge_influence,
    influence,
    prune,
    scores,
)
from jaxcirc.attribution_graphs._schema import feature_number, layer_and_unit
from jaxcirc.attribution_graphs._table import BIAS, ERROR, LATENT, LOGIT, Table, TOKEN


EDGES = {11: (1, 3, 6, 8), 3: (0, 1, 6), 1: (9, 10), 0: (9,)}  # target: sources, each of weight 10
TWELFTHS = [1, 4, 0, 3, 0, 0, 4, 0, 3, 3, 2, 0]


def small() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Twelve nodes, of which the last is explained: their adjacency matrix, as rows of all nodes, and the weights."""
    A = np.zeros((12, 12))
    for target, sources in EDGES.items():
        A[target, list(sources)] = 10
    return A, np.arange(12), np.eye(12)[11]


def table_of(kinds) -> Table:
    n = len(kinds)
    nothing = np.zeros(n, np.int32)
    probability = np.where(np.array(kinds) == LOGIT, 1.0, 0.0)
    return Table(
        ("",),
        np.array(kinds, np.int8),
        nothing,
        nothing,
        nothing,
        nothing,
        nothing + np.nan,
        nothing + np.nan,
        probability,
    )


def test_influence_of_a_small_graph():
    A, targets, weights = small()
    np.testing.assert_allclose(influence(A, targets, weights), np.array(TWELFTHS) / 12, rtol=1e-14)
    np.testing.assert_allclose(influence(-A, targets, weights), np.array(TWELFTHS) / 12, rtol=1e-14)
    held = np.array(sorted(EDGES))
    np.testing.assert_allclose(influence(A[held], held, weights), np.array(TWELFTHS) / 12, rtol=1e-14)


def test_influence_of_its_edges():
    A, targets, weights = small()
    A[0, 9] = A[3, 0] = 0
    found, want = edge_influence(A, targets, weights), np.zeros((12, 12))
    want[11, [1, 3, 6, 8]] = 1 / 4
    want[3, [1, 6]] = 1 / 8
    want[1, [9, 10]] = 3 / 16
    np.testing.assert_allclose(found, want, rtol=1e-14)


def test_paths_without_end_are_an_error():
    A, targets, weights = small()
    A[9, 11] = 1
    with pytest.raises(ValueError, match="paths of more than 1000 edges: the graph has a cycle"):
        influence(A, targets, weights)


def test_scores():
    """One output of a latent, an error and a token; the latent of an error and a bias: half, and so on, by hand."""
    table = table_of([LATENT, ERROR, ERROR, TOKEN, BIAS, LOGIT])
    rows = np.array([[0, 0, 1, 0, -3, 0], [2, -1, 0, 1, 0, 0]], float)
    targets, weights = np.array([0, 5]), np.eye(6)[5]
    reached = influence(rows, targets, weights)
    np.testing.assert_allclose(reached, [1 / 2, 1 / 4, 1 / 8, 1 / 4, 3 / 8, 0])
    found = scores(rows, targets, table, reached)
    assert found.replacement == pytest.approx((1 / 4) / (1 / 4 + 3 / 8))
    # Not errors are 3/4 of what the latent reads, 3/4 of what the output reads, and all that is not read at all.
    assert found.completeness == pytest.approx((3 / 4 * 1 / 2 + 1 / 4 + 1 / 8 + 1 / 4 + 3 / 8 + 3 / 4) / (3 / 2 + 1))


def test_pruning_drops_what_leads_nowhere():
    """Of three latents one is read by the output, one only by a weak latent, and one reads nothing that is kept."""
    table = table_of([LATENT, LATENT, LATENT, TOKEN, ERROR, LOGIT])
    rows = np.zeros((4, 6))
    targets = np.array([0, 1, 2, 5])
    rows[0, [3, 4]] = 1, 0.01
    rows[1, 3] = 1
    rows[2, [1, 4]] = 1e-6, 1
    rows[3, [0, 2]] = 1, 0.02
    reached = influence(rows, targets, np.eye(6)[5])
    kept = prune(rows, targets, table, reached, 0.9, 1.0)
    assert kept.nodes.tolist() == [0, 3, 5]
    assert kept.edges.astype(int).tolist() == [[0, 1, 0], [1, 0, 0]]
    everything = prune(rows, targets, table, reached, 1.0, 1.0)
    assert everything.nodes.tolist() == list(range(6))
    assert (everything.edges == (rows != 0)).all()
    nothing = prune(rows, targets, table, reached, 0.0, 0.0)
    assert nothing.nodes.tolist() == [0, 3, 5]
    by_edges = prune(rows, targets, table, reached, 1.0, 0.9)
    assert by_edges.nodes.tolist() == [0, 3, 5]


def test_numbers_of_features():
    pairs = [(layer, unit) for layer in range(40) for unit in (*range(50), 24575, 2**20)]
    numbers = [feature_number(*pair) for pair in pairs]
    assert len(set(numbers)) == len(pairs)
    assert [layer_and_unit(number) for number in numbers] == pairs
    assert feature_number(1, 2) == 8


def test_a_table_of_some_nodes():
    table = table_of([LATENT, ERROR, LOGIT])
    assert len(table.some(np.array([0, 2])).joined(table)) == 5
    assert dataclasses.replace(table).sources().tolist() == [False, True, False]
