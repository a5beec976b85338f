"""Circuits and annotations of the feature-circuits project: every layout of its files, and every way in which one can be wrong."""

import dataclasses
import json
import pickle
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.circuits._members import edge_masks
from jaxcirc.cli import main
from tests import oracle
from tests.helpers import needs_x64
from tests.test_attribution import problem
from tests.test_cli import own_cache  # noqa: F401  a fixture
from tests.test_evaluation import all_edges, circuit_of, KINDS, some_nodes


EXAMPLES = [{"clean_prefix": f"The boy {i}", "clean_answer": " is", "case": "x"} for i in range(7)]
# Widths all different, so that the two ends of an edge cannot be confused.
WIDTHS = {"embed": 3, "attn_0": 4, "mlp_0": 2, "resid_0": 5}
SITES = {
    "embed": "hook_embed",
    "attn_0": "blocks.0.hook_attn_out",
    "mlp_0": "blocks.0.hook_mlp_out",
    "resid_0": "blocks.0.hook_resid_post",
}
PAIRS = [("embed", "attn_0"), ("embed", "resid_0"), ("attn_0", "mlp_0"), ("attn_0", "resid_0"), ("mlp_0", "resid_0")]
SEQ = 2
LAYOUTS = ("hybrid", "full", "uncoalesced", "dense")
AGGREGATES = ("sum", "none")


class SparseAct:
    """What a file holds of a site."""

    __module__ = "activation_utils"

    def __init__(self, act, resc=None, res=None):
        self.act, self.res, self.resc = act, res, resc


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def write(path, nodes, edges, /, *, layout="hybrid", dtype="float32", **changes):
    """A circuit file of `nodes[name]` `[(seq) node]` and `edges[up, down]` `[(seq) node (seq) node]`, arrays; `None` leaves edges out."""
    import torch

    tensor = lambda array: torch.tensor(array, dtype=getattr(torch, dtype))
    held = {"examples": EXAMPLES, "nodes": {}, "edges": None if edges is None else {}}
    for name, values in nodes.items():
        held["nodes"][name] = SparseAct(tensor(values[..., :-1]), resc=tensor(values[..., -1:]))
    for (up, down), array in (edges or {}).items():
        half = 0 if down == "y" else array.ndim // 2
        held["edges"].setdefault(up, {})[down] = laid_out(tensor(array), layout, half)
    sys.modules["activation_utils"] = module = types.ModuleType("activation_utils")
    module.SparseAct = SparseAct
    try:
        torch.save({key: value for key, value in {**held, **changes}.items() if value is not ...}, path)
    finally:
        del sys.modules["activation_utils"]  # reading must not need it
    return path


def laid_out(dense, layout, half):
    """The tensor as a file holds it."""
    import torch

    if layout == "dense":
        return dense
    if layout == "full" or half == 0:
        return dense.to_sparse()
    hybrid = dense.to_sparse(half)
    if layout == "hybrid":
        return hybrid
    again = torch.randperm(hybrid._nnz(), generator=torch.Generator().manual_seed(0))
    indices = torch.cat([hybrid.indices()[:, again], hybrid.indices()], 1)
    values = torch.cat([0.25 * hybrid.values()[again], 0.75 * hybrid.values()])
    return torch.sparse_coo_tensor(indices, values, hybrid.shape)


def some(aggregate, widths=WIDTHS, pairs=PAIRS, seed=0):
    """Nodes and edges, a third of them zero, edges into the metric too; dyadic numbers, which every type holds."""
    rng = np.random.default_rng(seed)

    def numbers(*shape):
        return rng.integers(-64, 65, shape) / 64 * (rng.random(shape) < 2 / 3)

    shape = {name: ((SEQ,) if aggregate == "none" else ()) + (width + 1,) for name, width in widths.items()}
    nodes = {name: numbers(*shape[name]) for name in widths}
    edges = {(up, down): numbers(*shape[down], *shape[up]) for up, down in pairs}
    last = list(widths)[-1]
    return nodes, {**edges, (last, "y"): nodes[last]}


def instance(name, index, widths=WIDTHS):
    unit = "error" if index[-1] == widths[name] else int(index[-1])
    return f"{SITES[name]}/{unit}" + (f"@{int(index[0])}" if len(index) == 2 else "")


def wanted(nodes, edges, node_threshold=0.0, edge_threshold=0.0):
    """The tables, entry by entry of the dense arrays."""
    effects = {
        instance(name, index): float(values[tuple(index)])
        for name, values in nodes.items()
        for index in np.argwhere((np.abs(values) > node_threshold) & (values != 0))
    }
    weights = {}
    for (up, down), array in edges.items():
        half = 0 if down == "y" else array.ndim // 2
        for index in np.argwhere((np.abs(array) > edge_threshold) & (array != 0)):
            source = instance(up, index[half:])
            target = "metric" if down == "y" else instance(down, index[:half])
            weights[source, target] = float(array[tuple(index)])
    return effects, {
        ends: weight
        for ends, weight in weights.items()
        if ends[0] in effects and (ends[1] == "metric" or ends[1] in effects)
    }


def tables(circuit):
    effects = {row.node: row.effect for row in circuit.node_rows()}
    weights = {(row.source, row.target): row.weight for row in circuit.edge_rows()}
    assert (len(effects), len(weights)) == (len(circuit.nodes), len(circuit.edges))  # no entry twice
    return effects, weights


def test_numbers_placed_by_hand(torch, tmp_path):
    """Both positions, both ends, latents and errors, at places that no transposition leaves alone."""
    nodes = {name: np.zeros((SEQ, width + 1)) for name, width in WIDTHS.items()}
    nodes["embed"][0, 2], nodes["embed"][1, 3] = 0.5, -2.0  # latent 2, and the error
    nodes["resid_0"][1, 4], nodes["resid_0"][1, 5] = 1.5, 0.25
    nodes["attn_0"][1, 0] = 1e-3
    edges = {pair: np.zeros((SEQ, WIDTHS[pair[1]] + 1, SEQ, WIDTHS[pair[0]] + 1)) for pair in PAIRS}
    edges["embed", "resid_0"][1, 4, 0, 2] = 3.0
    edges["embed", "resid_0"][1, 5, 1, 3] = -0.75
    edges["embed", "resid_0"][0, 0, 0, 2] = 9.0  # into what is no node
    edges["embed", "attn_0"][1, 0, 0, 2] = 4.0  # into a node below the threshold
    edges["resid_0", "y"] = nodes["resid_0"]
    path = write(tmp_path / "rc_aggnone.pt", nodes, edges)
    circuit = jc.Circuit.from_feature_circuits(path, node_threshold=0.1, edge_threshold=0.3)
    effects, weights = tables(circuit)
    assert effects == {
        "hook_embed/2@0": 0.5,
        "hook_embed/error@1": -2.0,
        "blocks.0.hook_resid_post/4@1": 1.5,
        "blocks.0.hook_resid_post/error@1": 0.25,
    }
    assert weights == {
        ("hook_embed/2@0", "blocks.0.hook_resid_post/4@1"): 3.0,
        ("hook_embed/error@1", "blocks.0.hook_resid_post/error@1"): -0.75,
        ("blocks.0.hook_resid_post/4@1", "metric"): 1.5,
    }
    rows = {row.node: row for row in circuit.node_rows()}
    assert rows["hook_embed/error@1"][1:5] == ("hook_embed", 3, "error", 1)
    assert rows["hook_embed/2@0"][1:5] == ("hook_embed", 2, "latent", 0)
    assert circuit.meta["aggregate"] == "none"
    assert (circuit.meta["prompts"], circuit.meta["length"]) == (len(EXAMPLES), SEQ)
    assert circuit.meta["imported"] == {"format": "feature-circuits", "file": "rc_aggnone.pt"}
    assert circuit.meta["d_sae"] == {SITES[name]: width for name, width in WIDTHS.items()}
    assert "model" not in circuit.meta
    assert jc.Circuit.from_feature_circuits(path, model="pythia").meta["model"] == "pythia"
    circuit.save(tmp_path / "saved")
    assert jc.Circuit.load(tmp_path / "saved").edges.equals(circuit.edges)


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout, aggregate, tmp_path):
    nodes, edges = some(aggregate)
    path = write(tmp_path / "c.pt", nodes, edges, layout=layout)
    for cuts in ({}, {"node_threshold": 0.25, "edge_threshold": 0.5}):
        want = wanted(nodes, edges, **cuts)
        assert min(map(len, want)) > 5
        assert tables(jc.Circuit.from_feature_circuits(path, **cuts)) == want


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_type(dtype, tmp_path):
    nodes, edges = some("sum")
    path = write(tmp_path / "c.pt", nodes, edges, dtype=dtype)
    assert tables(jc.Circuit.from_feature_circuits(path)) == wanted(nodes, edges)


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_thresholds_are_strict_and_zeros_never_stay(aggregate, tmp_path):
    nodes, edges = some(aggregate)
    at = 0.25
    nodes["embed"].flat[1], edges["embed", "resid_0"].flat[5] = at, -at
    path = write(tmp_path / "c.pt", nodes, edges)
    for cuts in ({"node_threshold": at, "edge_threshold": at}, {"node_threshold": 0.0, "edge_threshold": 0.0}):
        circuit = jc.Circuit.from_feature_circuits(path, **cuts)
        assert tables(circuit) == wanted(nodes, edges, **cuts)
        assert circuit.nodes["effect"].abs().min() > max(cuts["node_threshold"], 0)
        assert circuit.edges["weight"].abs().min() > max(cuts["edge_threshold"], 0)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_parts_that_cancel_are_no_edge(aggregate, torch, tmp_path):
    nodes, edges = some(aggregate)
    pair = ("embed", "resid_0")
    array = edges[pair]
    hybrid = torch.tensor(array, dtype=torch.float32).to_sparse(array.ndim // 2)
    cancelling = torch.sparse_coo_tensor(
        torch.cat([hybrid.indices()] * 2, 1), torch.cat([hybrid.values(), -hybrid.values()]), array.shape
    )
    stored = {"embed": {"resid_0": cancelling}, "resid_0": {"y": torch.tensor(edges["resid_0", "y"])}}
    circuit = jc.Circuit.from_feature_circuits(write(tmp_path / "c.pt", nodes, None, edges=stored))
    assert tables(circuit) == wanted(nodes, {("resid_0", "y"): edges["resid_0", "y"]})
    assert (circuit.edges["target"] == "metric").all()


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_edges_that_are_empty_or_absent(aggregate, torch, tmp_path):
    nodes, edges = some(aggregate)
    only = jc.Circuit.from_feature_circuits(write(tmp_path / "nodes.pt", nodes, None))
    assert tables(only) == (wanted(nodes, {})[0], {})
    assert (list(only.edges.columns), only.meta["notes"]) == (["source", "target", "weight"], [])
    assert "residual_edges" not in only.meta
    # Nothing above the threshold: all axes sparse, and where widths differ, of another site's width.
    empty = torch.sparse_coo_tensor(torch.zeros((4, 0), dtype=torch.long), torch.zeros(0), (9, 9, 9, 9))
    stored = {"embed": {"resid_0": empty}, "resid_0": {"y": torch.tensor(edges["resid_0", "y"]).to_sparse()}}
    circuit = jc.Circuit.from_feature_circuits(write(tmp_path / "empty.pt", nodes, None, edges=stored))
    assert tables(circuit) == wanted(nodes, {("resid_0", "y"): edges["resid_0", "y"]})
    assert "residual_edges" not in circuit.meta


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_what_is_to_be_known_of_the_edges_is_noted(aggregate, tmp_path):
    nodes, edges = some(aggregate)
    of = lambda edges, **more: jc.Circuit.from_feature_circuits(write(tmp_path / "c.pt", nodes, edges, **more)).meta
    new, old = of(edges), of(edges, layout="full")
    assert (new["residual_edges"], old["residual_edges"]) == ("direct", "total")
    assert not any("error nodes" in note or "2024" in note for note in new["notes"])
    assert any("total effects and not direct" in note for note in old["notes"])
    without = {pair: array * (np.arange(array.shape[-1]) < WIDTHS[pair[0]]) for pair, array in edges.items()}
    without["resid_0", "y"] = edges["resid_0", "y"]
    assert any("All edges out of error nodes are zero" in note for note in of(without)["notes"])
    assert all(any("threshold at which the file was made" in note for note in meta["notes"]) for meta in (new, old))
    alone = {("attn_0", "mlp_0"): edges["attn_0", "mlp_0"]}
    assert "residual_edges" not in of(alone)


def test_a_node_of_the_metric_is_left_out(torch, tmp_path):
    nodes, edges = some("sum")
    held = {name: SparseAct(torch.tensor(v[:-1]), resc=torch.tensor(v[-1:])) for name, v in nodes.items()}
    path = write(tmp_path / "c.pt", nodes, edges, nodes=held | {"y": torch.ones(3)})
    assert tables(jc.Circuit.from_feature_circuits(path)) == wanted(nodes, edges)


# Evaluated


def as_file(path, arguments, circuit, seq):
    """Writes a circuit's own tables as a file."""
    saes = arguments[1]
    called = {Kind.EMBED: "embed", Kind.ATTN_OUT: "attn_{}", Kind.MLP_OUT: "mlp_{}", Kind.RESID_POST: "resid_{}"}
    name = {site: called[site.kind].format(site.layer) for site in saes}
    where = {
        row.node: (Site.parse(row.site), () if row.pos is None else (row.pos,), row.unit) for row in circuit.node_rows()
    }
    shape = {site: (() if seq is None else (seq,)) + (sae.d_sae + 1,) for site, sae in saes.items()}
    nodes = {site: np.zeros(shape[site]) for site in saes}
    for row in circuit.node_rows():
        site, pos, unit = where[row.node]
        nodes[site][(*pos, unit)] = row.effect
    edges = {}
    for row in circuit.edge_rows():
        site, pos, unit = where[row.source]
        down, *index = (None, ()) if row.target == "metric" else where[row.target]
        array = edges.setdefault((site, down), np.zeros((*shape.get(down, ()), *shape[site])))
        array[(*index[0], *index[1:], *pos, unit)] = row.weight
    edges = {(name[up], "y" if down is None else name[down]): array for (up, down), array in edges.items()}
    return write(path, {name[site]: values for site, values in nodes.items()}, edges)


@pytest.fixture(scope="module")
def arguments():
    """A problem whose first dictionary is at the token embedding, as in the project."""
    model, saes, *rest = problem(batch=3, seq=4, kinds=KINDS)
    embed, first = Site(None, Kind.EMBED), Site(0, Kind.RESID_PRE)
    moved = {site: sae for site, sae in saes.items() if site != first}
    return model, {embed: dataclasses.replace(saes[first], site=embed), **moved}, *rest


@needs_x64
@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("seq", [None, 4])
def test_an_imported_circuit_is_evaluated_like_one_of_ours(arguments, seq, tmp_path):
    nodes = some_nodes(arguments, 0.4, seq=seq)
    ours = circuit_of(arguments, nodes, [pair for i, pair in enumerate(all_edges(arguments, nodes)) if i % 3])
    rng = np.random.default_rng(1)
    numbers = lambda table: (rng.permutation(len(table)) + 1) / 64  # no two alike, so that their order is one
    ours = dataclasses.replace(
        ours, nodes=ours.nodes.assign(effect=numbers(ours.nodes)), edges=ours.edges.assign(weight=numbers(ours.edges))
    )
    imported = jc.Circuit.from_feature_circuits(as_file(tmp_path / "c.pt", arguments, ours, seq))
    last = arguments[1][Site(None, Kind.EMBED)].d_sae
    named = lambda name: re.sub(rf"/{last}(?=@|$)", "/error", name)
    effects, weights = tables(ours)
    assert (imported.nodes["kind"] == "error").any()
    assert tables(imported) == (
        {named(node): effect for node, effect in effects.items()},
        {tuple(map(named, ends)): weight for ends, weight in weights.items()},
    )
    assert set(imported.meta["d_sae"].values()) == {last}
    got, want = (jc.evaluate(circuit, *arguments) for circuit in (imported, ours))
    assert abs(want.m_circuit - want.m_empty) > 1e-3
    for run in want.per_prompt:
        np.testing.assert_array_equal(got.per_prompt[run], want.per_prompt[run])
    got, want = (
        edge_masks(circuit, arguments[1], 4) for circuit in (imported, ours)
    )  # all that level="edges" has of them
    assert list(got) == list(want)
    for target, into in want.items():
        jax.tree.map(np.testing.assert_array_equal, got[target], into)


@needs_x64
@pytest.mark.usefixtures("torch")
def test_dictionaries_of_another_width_are_refused(arguments, tmp_path):
    model, saes, *rest = arguments
    site = Site(0, Kind.MLP_OUT)
    error, latent = (site, saes[site].d_sae, None), (site, 2, None)
    wider = {**saes, site: oracle.random_sae(jax.random.key(0), site, model.d_model, saes[site].d_sae + 4)}
    told = (
        f"found with {saes[site].d_sae} latents at `{site}`, and the dictionary given there has {saes[site].d_sae + 4}"
    )
    imported = jc.Circuit.from_feature_circuits(
        as_file(tmp_path / "c.pt", arguments, circuit_of(arguments, [latent]), None)
    )
    ours = circuit_of(arguments, [error])
    by_error = dataclasses.replace(ours, nodes=ours.nodes.assign(kind="error"), meta={})
    for circuit in (imported, by_error):
        with pytest.raises(ValueError, match=told):
            jc.evaluate(circuit, model, wider, *rest)


# Bad files


class Code:
    """A pickle of it makes a folder when it is loaded."""

    def __reduce__(self):
        return Path.mkdir, (Path("ran"),)


def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(torch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes, edges = some("sum")
    write("inside.pt", nodes, edges, examples=[Code()])
    torch.save(Code(), "legacy.pt", _use_new_zipfile_serialization=False)
    Path("plain.pt").write_bytes(pickle.dumps(Code()))
    for name, what in {"inside.pt": "`getattr`", "legacy.pt": "`getattr`", "plain.pt": "more than tensors"}.items():
        with pytest.raises(ValueError, match=f"{name} is a pickle that wants {what}.*run code, so it is refused"):
            jc.Circuit.from_feature_circuits(name)
        assert not Path("ran").exists()
    assert [cls.__name__ for cls in torch.serialization.get_safe_globals() if "activation" in cls.__module__] == []
    pickle.loads(Path("plain.pt").read_bytes())  # it would have
    assert Path("ran").exists()


def test_another_class_is_named(torch, tmp_path, monkeypatch):
    monkeypatch.setattr(SparseAct, "__module__", __name__)
    torch.save({"nodes": SparseAct(torch.ones(2))}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"wants `tests.test_feature_circuits_files.SparseAct`.*holds tensors, plain"):
        jc.Circuit.from_feature_circuits(tmp_path / "c.pt")


@pytest.mark.usefixtures("torch")
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_file(share, tmp_path):
    path = write(tmp_path / "c.pt", *some("none"))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"c.pt is not a whole PyTorch file \(.+\). Download it again"):
        jc.Circuit.from_feature_circuits(path)


@pytest.mark.usefixtures("torch")
def test_what_is_no_pickle(tmp_path):
    (tmp_path / "c.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=r"c.pt is not a PyTorch file \(it begins with .*Download the file itself"):
        jc.Circuit.from_feature_circuits(tmp_path / "c.pt")
    with pytest.raises(FileNotFoundError):
        jc.Circuit.from_feature_circuits(tmp_path / "none.pt")


def test_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"c.pt is a PyTorch file.*pip install 'jaxcirc\[torch\]'"):
        jc.Circuit.from_feature_circuits(tmp_path / "c.pt")


def ones(*shape):
    import torch

    return torch.ones(shape)


def outside():
    """A sparse tensor with an entry outside its shape, as a damaged file may have."""
    import torch

    return torch.sparse_coo_tensor([[99]], ones(1, 4), (6, 4), check_invariants=False)


ACTS = lambda **fields: {"nodes": {"embed": SparseAct(fields.get("act"), fields.get("resc"), fields.get("res"))}}
CONTENTS = {
    "other contents": (lambda: {"nodes": ..., "edges": ..., "examples": ..., "a": 1}, "a dict without 'examples', 'nodes', 'edges'"),
    "no edges": (lambda: {"edges": ...}, "holds a dict without 'edges'; a circuit of feature-circuits has 'examples', 'nodes', 'edges'"),
    "examples": (lambda: {"examples": 7}, "expected a list of prompts under 'examples', got int"),
    "nodes": (lambda: {"nodes": [1]}, "expected effects by name under 'nodes'.*got list"),
    "no nodes": (lambda: {"nodes": {"y": ones(1)}}, "expected effects by name under 'nodes'.*got dict without any"),
    "node's name": (lambda: {"nodes": {"layer_0": ones(1)}}, "no node is called 'layer_0'. Expected `embed`, `attn_0`"),
    "not contracted": (lambda: ACTS(act=ones(4), res=ones(3)), "of node 'embed' expected a SparseAct with `act`.*got no such pair"),
    "single prompts": (lambda: ACTS(act=ones(9, 2, 4), resc=ones(9, 2, 1)), r"got \[9, 2, 4\] and \[9, 2, 1\]. Files of single"),
    "error's shape": (lambda: ACTS(act=ones(2, 4), resc=ones(1)), r"got \[2, 4\] and \[1\]"),
    "tensor for a node": (lambda: {"nodes": {"embed": ones(4)}}, "of node 'embed' expected a SparseAct"),
    "NaN": (lambda: ACTS(act=ones(4) * float("nan"), resc=ones(1)), "the effects of 'embed' hold NaN or infinite values"),
    "positions": (
        lambda: {"nodes": {f"mlp_{s}": SparseAct(ones(s, 4), ones(s, 1)) for s in (2, 3)}, "edges": None},
        r"the nodes differ in their positions, \[\(2,\), \(3,\)\]",
    ),
    "edges": (lambda: {"edges": [ones(2)]}, r"under 'edges' expected \{up: \{down: tensor\}\} or None, got list"),
    "edge's name": (lambda: {"edges": {"y": {"embed": ones(2)}}}, "no node is called 'y'"),
    "edge of no node": (lambda: {"edges": {"embed": {"mlp_7": ones(2)}}}, "from 'embed' to 'mlp_7' are of a node that the file has no"),
    "backwards": (lambda: {"edges": {"resid_0": {"embed": ones(4, 6)}}}, "from 'resid_0' to 'embed' run backwards"),
    "transposed": (
        lambda: {"edges": {"embed": {"resid_0": ones(4, 6)}}},
        r"have shape \[4, 6\], expected \[6, 4\]: first the nodes that they go to",
    ),
    "no tensor": (lambda: {"edges": {"embed": {"resid_0": 3.0}}}, "are float; expected a tensor, sparse"),
    "layout": (lambda: {"edges": {"embed": {"resid_0": ones(6, 4).to_sparse_csr()}}}, "expected a tensor, sparse .COO. or dense"),
    "NaN edges": (lambda: {"edges": {"embed": {"resid_0": ones(6, 4) * float("inf")}}}, "edges hold NaN or infinite values"),
    "outside its shape": (lambda: {"edges": {"embed": {"resid_0": outside()}}}, "is not a whole PyTorch file .*size is inconsistent"),
}  # fmt: skip


@pytest.mark.usefixtures("torch")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("what", list(CONTENTS))
def test_other_contents_are_refused(what, tmp_path):
    change, message = CONTENTS[what]
    path = write(tmp_path / "c.pt", *some("sum"), **change())
    with pytest.raises(ValueError, match=f"c.pt.*{message}"):
        jc.Circuit.from_feature_circuits(path)


@pytest.mark.usefixtures("torch")
def test_a_threshold_above_everything(tmp_path):
    path = write(tmp_path / "c.pt", *some("sum"))
    with pytest.raises(ValueError, match=r"no node has an effect above node_threshold=5; the largest is .*Lower it"):
        jc.Circuit.from_feature_circuits(path, node_threshold=5.0)


# Annotations

LINES = [
    {"Component": "resid", "Layer": "0", "Feature": "4", "Name": "resid_0/4", "Annotation": "verbs", "Notes": "in s"},
    {
        "Component": "Component",
        "Layer": "",
        "Feature": "",
        "Name": "Name",
        "Annotation": "Annotation",
        "Notes": "Notes",
    },
    {"Name": "embed/2", "Annotation": "<boys>"},
    {"Component": "mlp", "Layer": 0, "Feature": 1, "Name": None, "Annotation": "nouns", "notes": ""},
    {"Component": "embed", "Layer": "", "Feature": "0", "Annotation": "she"},
    {"Component": "attn", "Layer": "3", "Feature": "7", "Name": "attn_3/7"},  # says nothing
    {"Name": "resid_0/ε", "Annotation": "the rest"},
    {"Name": "resid_0/4", "Annotation": "plural"},
    {"Name": "resid_0/4", "Annotation": "plural"},
]
NOTES = {
    "blocks.0.hook_resid_post/4": "verbs (in s); plural",
    "hook_embed/2": "<boys>",
    "blocks.0.hook_mlp_out/1": "nouns",
    "hook_embed/0": "she",
    "blocks.0.hook_resid_post/error": "the rest",
}


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in LINES), encoding="utf-8")
    return path


def test_annotations_are_read(annotations):
    assert jc.load_annotations(annotations) == NOTES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"line 2 is not JSON \(.* at column 2\)"),
        ("[1]", "line 2 is a JSON list. Expected one object a line"),
        ('{"Annotation": "x"}', "line 2 names '/', which is no latent"),
        ('{"Name": "resid_1"}', "line 2 names 'resid_1', which is no latent.*as in `resid_5/3036`, or ε for the error"),
        ('{"Name": "layer_1/3"}', "line 2 names 'layer_1/3'"),
        ('{"Name": "mlp_1/-3"}', "line 2 names 'mlp_1/-3'"),
    ],
)
def test_a_bad_line_is_named_by_its_number(line, message, tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_text(f'{{"Name": "mlp_0/1", "Annotation": "x"}}\n{line}\n')
    with pytest.raises(ValueError, match=f"annotations.jsonl, {message}"):
        jc.load_annotations(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"holds no annotations\. Expected one JSON object a line"):
        jc.load_annotations(path)


TABLE = [{name: str(line.get(name) or "") for name in LINES[0]} for line in LINES if "notes" not in line]
TABLE.insert(
    2,
    {
        name: {"Component": "mlp", "Layer": "0", "Feature": "1", "Annotation": "nouns"}.get(name, "")
        for name in LINES[0]
    },
)


def divided(delimiter):
    def table(path):
        import csv

        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(TABLE[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(TABLE)

    return table


def as_parquet(path):
    import pandas as pd

    pd.DataFrame(TABLE).to_parquet(path)


def as_text(content):
    return lambda path: path.write_text(content, encoding="utf-8")


@pytest.mark.parametrize(
    "stored",
    [
        as_text(json.dumps(LINES)),
        as_text(json.dumps(LINES, indent=2, ensure_ascii=False)),
        as_text(json.dumps({"model": "pythia", "annotations": LINES}, indent=2)),
        as_text(json.dumps({name: [row[name] for row in TABLE] for name in TABLE[0]})),
        divided(","),
        divided(";"),
        divided("\t"),
        as_parquet,
        as_text(json.dumps(NOTES)),  # as load_annotations returns them
    ],
    ids=[
        "list",
        "list over lines",
        "object with a list",
        "columns",
        "csv",
        "semicolons",
        "tsv",
        "parquet",
        "our names",
    ],
)
def test_annotations_are_read_from_any_file(stored, tmp_path):
    stored(tmp_path / "annotations")
    assert jc.load_annotations(tmp_path / "annotations") == NOTES


@pytest.mark.parametrize("indent", [None, 4])
def test_annotations_as_one_object(indent, tmp_path):
    """As older files of the project are."""
    held = {
        "attn_1/5": "end of clause",
        "embed/12": "boys",
        "mlp_3/4": {"Annotation": "nouns", "Notes": "in s"},
        "resid_0/ε": ["the rest", "and more"],
        "resid_2/7": None,
    }
    (tmp_path / "5_32768_annotations.json").write_text(json.dumps(held, indent=indent), encoding="utf-8")
    assert jc.load_annotations(tmp_path / "5_32768_annotations.json") == {
        "blocks.1.hook_attn_out/5": "end of clause",
        "hook_embed/12": "boys",
        "blocks.3.hook_mlp_out/4": "nouns (in s)",
        "blocks.0.hook_resid_post/error": "the rest; and more",
    }
    held |= {"layer_1/3": "x", "resid_1": "y"}
    (tmp_path / "a.json").write_text(json.dumps(held, indent=indent), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.json has 2 rows that cannot be used") as error:
        jc.load_annotations(tmp_path / "a.json")
    for name in ("layer_1/3", "resid_1"):
        assert f"names {name!r}, which is no latent." in str(error.value)


def test_every_bad_annotation_is_told(tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_text(
        "\n".join(['{"Name": "mlp_0/1", "Annotation": "x"}', *["{oops", '{"Name": "layer_1/3"}'] * 15]),
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=r"annotations.jsonl has 30 rows that cannot be used") as error:
        jc.load_annotations(path)
    told = str(error.value).splitlines()
    assert told[1].startswith("line 2 is not JSON")
    assert told[20] == "line 21 names 'layer_1/3', which is no latent."
    assert told[21] == "and 10 more."


def test_an_annotation_without_position_serves_all_positions(torch, annotations, tmp_path):
    nodes = {name: np.ones((SEQ, width + 1)) for name, width in WIDTHS.items()}
    path = write(tmp_path / "c.pt", nodes, {("resid_0", "y"): nodes["resid_0"]})
    notes = jc.load_annotations(annotations) | {"hook_embed/2@1": "at one"}
    circuit = jc.Circuit.from_feature_circuits(path).annotate(annotations=notes, tokens=["The", " boy"])
    circuit.to_html(tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    held = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    titles = dict(zip(held["nodes"]["name"], (about.get("note") for about in held["about"]), strict=True))
    assert titles["hook_embed/2@0"] == "<boys>"
    assert "<boys>" not in page
    assert titles["hook_embed/2@1"] == "at one"
    assert titles["blocks.0.hook_resid_post/error@0"] == titles["blocks.0.hook_resid_post/error@1"] == "the rest"
    assert titles["hook_embed/1@0"] == ""
    assert dict(held["facts"]).keys() == {"prompts"}  # a file does not say by what metric
    circuit.to_attribution_graph(tmp_path / "graph.json")
    graph = json.loads((tmp_path / "graph.json").read_text())
    label = {node["node_id"]: node["clerp"] for node in graph["nodes"]}
    assert label["blocks.0.hook_mlp_out/1@0"].endswith(": nouns")
    assert label["blocks.0.hook_resid_post/error@1"].endswith("ε: the rest")


# The command


@pytest.mark.usefixtures("own_cache", "torch")
def test_convert(annotations, tmp_path, capsys):
    nodes, edges = some("none")
    path = write(tmp_path / "c.pt", nodes, edges, layout="full")
    out = tmp_path / "out"
    options = ["--out", str(out), "--annotations", str(annotations), "--node-threshold", "0.25", "--model", "pythia"]
    assert main(["convert", str(path), *options]) == 0
    printed = capsys.readouterr().out
    circuit = jc.Circuit.load(out)
    assert tables(circuit) == wanted(nodes, edges, node_threshold=0.25)
    assert circuit.meta["annotations"] == NOTES
    assert circuit.meta["model"] == "pythia"
    assert "<svg" in (out / "circuit.html").read_text()
    assert f"{len(circuit.nodes)} nodes (" in printed
    assert "note: The edges are stored as before September 2024" in printed
    assert main(["convert", str(path), *options, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["nodes"], said["edges"]) == (len(circuit.nodes), len(circuit.edges))
    assert said["annotated"] == sum(row.node.split("@")[0] in NOTES for row in circuit.node_rows()) > 0


@pytest.mark.usefixtures("own_cache", "torch")
def test_convert_on_bad_input_is_one_line_and_exit_code_2(annotations, tmp_path, capsys):
    def said(*options):
        assert main(["convert", *map(str, options)]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    good, bad, out = write(tmp_path / "c.pt", *some("sum")), tmp_path / "bad.pt", tmp_path / "out"
    bad.write_text("<html>")
    assert "bad.pt is not a PyTorch file" in said(bad, "--out", out)
    assert "No such file" in said(tmp_path / "none.pt", "--out", out)
    assert "the largest is" in said(good, "--out", out, "--node-threshold", "9")
    annotations.write_text("{")
    assert "annotations.jsonl, line 1 is not JSON" in said(good, "--out", out, "--annotations", annotations)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    assert "exists and is not a circuit" in said(good, "--out", tmp_path / "thesis")
    assert not out.exists()


def test_convert_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", "--help"])
    assert stop.value.code == 0
    assert "example: jaxcirc convert rc_train_n100_aggsum.pt" in " ".join(capsys.readouterr().out.split())
