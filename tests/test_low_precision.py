"""Circuits whose edges are found in low precision: those of full precision, with what was measured and computed again."""

import jax
import numpy as np
import pytest
import scipy.sparse

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.circuits._node_list import NodeList
from jaxcirc.circuits._sure_edges import sure_edges

from .test_attribution import problem
from .test_circuits import CUTS


@pytest.fixture(scope="module")
def arguments():
    """In float32, in whatever numbers the suite runs."""
    single = lambda x: x.astype("float32") if np.issubdtype(x.dtype, np.floating) else x
    model, saes, *prompts = problem(batch=3, seq=4)
    return jax.tree.map(single, model), jax.tree.map(single, saes), *prompts


def weights(circuit: jc.Circuit) -> dict[tuple[str, str], float]:
    edges = circuit.edges
    return dict(zip(zip(edges["source"], edges["target"], strict=True), edges["weight"], strict=True))


@pytest.mark.parametrize(
    ("precision", "more"), [("tensorfloat32", {}), ("bfloat16", {"aggregate": "none", "batch_size": 2})]
)
def test_the_circuit_by_low_precision_is_that_of_full_precision(precision, more, arguments, monkeypatch):
    find = lambda threshold, **low: jc.discover(
        *arguments, node_threshold=CUTS["node_threshold"], edge_threshold=threshold, **more, **low
    )
    with monkeypatch.context() as patch:
        patch.setattr("jaxcirc.circuits._sure_edges.STRONGEST", 0)  # nothing is measured, nothing computed again
        full, plain = find(0.0), weights(find(0.0, edge_precision=precision))
    assert full.meta.recomputed is None
    full = weights(full)
    size, off = max(map(abs, full.values())), {ends: abs(full[ends] - plain.get(ends, 0.0)) for ends in full}
    # A threshold between the two values of an edge that is not among the strongest.
    worst = max(sorted(full, key=lambda ends: abs(full[ends]))[: len(full) // 2], key=off.__getitem__)
    assert off[worst] > 1e-6 * size
    threshold = (abs(full[worst]) + abs(plain[worst])) / 2
    above = lambda found: {ends for ends, weight in found.items() if abs(weight) > threshold}
    assert worst in above(full) ^ above(plain)
    found = find(threshold, edge_precision=precision)
    assert len(above(full)) > 10
    assert weights(found).keys() == above(full)
    said = found.meta.recomputed
    assert said["precision"] == precision
    assert 0 < said["edges"] < said["of"]
    assert 0.1 * max(off.values()) < said["error"] * size < 1.01 * max(off.values())
    assert said["bound"] == pytest.approx(2 * said["error"])
    # What is not near the threshold stays as it was found.
    assert max(abs(weight - full[ends]) for ends, weight in weights(found).items()) <= said["bound"] * size
    assert found.meta.certificate["error"] < 1e-4


def test_an_error_that_turns_out_larger_is_allowed_for(monkeypatch, untyped):
    """The edges into the strongest targets are off by less than others: then what is further from the threshold is computed again too."""
    source, target = Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT)
    exact = np.array([[9.0, 8.0], [7.0, 6.0], [1.04, 0.5], [0.9, 0.2], [0.1, 0.8]])
    low = exact + np.array(
        [[0.03, 0.0], [0.0, 0.01], [-0.08, 0.0], [0.13, 0.0], [0.0, 0.0]]
    )  # 0.96 and 1.03, on the other side
    passes = []

    def mean_edges(*given, into=None, out_of=None, precision=None, certify=True):
        if into is None:
            return {(source, target): scipy.sparse.csr_array(low)}, []
        passes.append((into[target].numbers.tolist(), precision, certify))
        met = np.isin(np.arange(5), into[target].numbers)[:, None] & np.isin(np.arange(2), out_of[source].numbers)
        return {(source, target): scipy.sparse.csr_array(np.where(met, exact, 0))}, [1e-7]

    monkeypatch.setattr("jaxcirc.circuits._sure_edges.mean_edges", mean_edges)
    kept = {site: NodeList(np.arange(n), np.ones(n), (n,)) for site, n in ((source, 2), (target, 5))}
    asked = {"threshold": 1.0, "precision": "bfloat16"}
    weights, errors, said = sure_edges(None, [], None, None, kept, lambda *_: None, **asked)
    # By the strongest, errors are 0.03: 0.96 and 1.03 are within twice that of the threshold, and turn out to be off by 0.13; then 0.8 is
    # within twice that too.
    assert passes == [([0, 1], "float32", True), ([2, 3], "float32", False), ([4], "float32", False)]
    found = weights[source, target].toarray()
    assert ((found > 1.0) == (exact > 1.0)).all()
    assert ((low > 1.0) != (exact > 1.0)).any()
    assert errors == [1e-7] * 3
    assert (said.edges, said.of) == (7, 10)
    assert said.error == pytest.approx(0.13 / 9)


def test_another_precision_is_refused(arguments, untyped):
    with pytest.raises(ValueError, match="edge_precision must be 'bfloat16' or 'tensorfloat32'"):
        jc.discover(*arguments, **CUTS, edge_precision="float16")
