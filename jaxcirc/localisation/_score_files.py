"""Scores and circuits in files, as the circuit-localisation track of the benchmark exchanges them."""

import warnings
from pathlib import Path

import numpy as np

from .._checks import check_kind, check_path
from .._files import writing_file
from ..models import Transformer
from ._edge_scores import benchmark_graph, EdgeScores
from ._score_json import parse_json, to_json
from ._score_tensors import parse_tensors, to_tensors


SUFFIXES = (".json", ".pt")


def save_scores(scores: EdgeScores, path: str | Path) -> None:
    """Writes scores, or a circuit, as a `.json` or a `.pt` file (which takes PyTorch), with every edge of the graph in it.

    A node is in the circuit if it has an edge into it and one out of it there. Edges without a score are written without, and in a `.pt`
    file, where all have a number, with 0.

    **Raises:** `ValueError` for another suffix, and a score that is infinite.
    """
    check_kind("save_scores: scores", scores, EdgeScores, "what jc.localisation.EdgeScores.of(model, …) gives")
    path = check_path("save_scores: path", path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"save_scores: path: scores are written as .json or .pt, and {path.name} is neither.")
    if (infinite := np.isinf(scores.scores)).any():
        raise ValueError(
            f"save_scores: files hold finite numbers, and edge {scores.graph.edge_names(infinite & scores.graph.edges)[0]} has none."
        )
    write = to_json if path.suffix == ".json" else to_tensors
    with writing_file(path) as aside:
        write(scores, aside)


def load_scores(path: str | Path, model: Transformer | None = None) -> EdgeScores:
    """Reads scores, or a circuit, from a file of the benchmark, JSON or PyTorch's, which of them its beginning says.

    Scores are taken as they stand, in the benchmark's convention: above 0 for an edge that helps. `EdgeScores.sign` says what they look
    like, and a file that looks like the opposite is warned of: rank its edges `by="absolute"`, or turn the signs. Of a PyTorch file plain
    tensors are read, never objects.

    **Arguments:** - `model`: whose scores they should be; `None` takes any model's.

    **Returns:** `EdgeScores`.

    **Raises:** `ValueError` for a file that lacks an edge, which it names; for the graph of another model, with the numbers that differ;
    for scores of single neurons; for what is no such file.

    >>> model_scores = jc.localisation.EdgeScores.of(model, kept=jc.localisation.benchmark_graph(model).mask(["embed->logits"]))
    >>> jc.localisation.save_scores(model_scores, "circuit.json")
    >>> int(jc.localisation.load_scores("circuit.json", model).kept.sum())
    1

    **Reference:** Mueller et al. 2025, arXiv 2504.13151; the files of Hanna et al. 2024, arXiv 2403.17806.
    """
    path = check_path("load_scores: path", path)
    with path.open("rb") as file:
        start = file.read(2)
    found = parse_tensors(path) if start in (b"PK", b"\x80\x02") else parse_json(path)
    if model is not None:
        _check_model(path, found, model)
    if found.sign == "hurts":
        warnings.warn(
            f"{path}: scores below 0 outweigh those above, as where a score above 0 means that the edge hurts. The benchmark has it the "
            'other way round: rank edges by="absolute", or turn the signs.',
            stacklevel=2,
        )
    return found


def _check_model(path: Path, found: EdgeScores, model: Transformer) -> None:
    graph, held = benchmark_graph(model), found.graph
    pairs = {
        "layers": (held.n_layers, graph.n_layers),
        "heads": (held.n_heads, graph.n_heads),
        "d_model": (found.d_model, model.d_model),
        "parallel blocks": (held.parallel, graph.parallel),
    }
    differ = [
        f"{name} {theirs} in the file, {ours} in the model" for name, (theirs, ours) in pairs.items() if theirs != ours
    ]
    if differ:
        raise ValueError(
            f"{path} is of another model than {model.name}: {'; '.join(differ)}. Give the model that it is of."
        )
