"""`jaxcirc circuit-roc`: how well files of scores find the edges of a circuit that is known."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .._words import counted
from ..localisation import EdgeScores, load_scores, ROC, roc
from ._common import say_json, Subparsers
from ._localised import RANKINGS
from ._options import existing_file
from ._tables import add_table_option, plain, save_table


if TYPE_CHECKING:
    import pandas as pd


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "circuit-roc",
        help="how well scores of edges find a circuit that is known",
        description="Compares scores of the edges between a model's components with a circuit that is known, by the area under the "
        "receiver operating characteristic (AUROC). Both come from files that component-edges or circuit-curve wrote, or the benchmark's.",
        epilog="example: jaxcirc circuit-roc importances.json --known circuit.json",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=existing_file("scores"),
        metavar="SCORES",
        help="files with scores of edges, .json or .pt",
    )
    parser.add_argument(
        "--known",
        required=True,
        type=existing_file("--known"),
        metavar="FILE",
        help="file with the circuit, as `jaxcirc component-edges --method greedy --out` writes it",
    )
    parser.add_argument(
        "--points",
        choices=("all", "benchmark"),
        default="all",
        help="through every score, or as the benchmark draws it: through pruned circuits of ten sizes (%(default)s)",
    )
    add_table_option(parser, "points of the curves")
    parser.set_defaults(command=compare)


def compare(arguments: argparse.Namespace) -> int:
    known = load_scores(arguments.known)
    true, edges = int(known.kept.sum()), known.graph.n_edges
    if not 0 < true < edges:
        raise ValueError(
            f"--known {arguments.known}: {true} of {counted(edges, 'edge')} are in the circuit. Give a file with some edges in it and some "
            "outside, such as one of `jaxcirc component-edges --method greedy --out`."
        )
    scores = {path: _scores(path, arguments.known, known) for path in dict.fromkeys(arguments.files)}
    curves = {
        (path, by): roc(known.graph, of.scores, known.kept, by=by, points=arguments.points)
        for path, of in scores.items()
        for by in RANKINGS
    }
    save_table(_points(curves), arguments.out)
    areas = {path: {by: curves[path, by].area for by in RANKINGS} for path in scores}
    if arguments.json:
        rows = [{"scores": str(path), **plain(of)} for path, of in areas.items()]
        facts = {"known": str(arguments.known), "edges": edges, "true": true, "points": arguments.points, "rows": rows}
        say_json({**facts, "out": str(arguments.out) if arguments.out else None})
        return 0
    wide = max(len(str(path)) for path in areas)
    print(f"{true} of {counted(edges, 'edge')} are in the circuit of {arguments.known.name}; area under the curve:\n")
    print(f"{'':<{wide}}  by signed score  by absolute score")
    for path, of in areas.items():
        print(f"{path!s:<{wide}}  {of['signed']:z15.3f}  {of['absolute']:z17.3f}")
    print(
        "\n1 if all edges of the circuit have the largest scores, 0.5 by chance"
        if arguments.points == "all"
        else "\n1 is best; through so few points chance may be below 0.5"
    )
    if arguments.out:
        print(f"\nwritten to {arguments.out}.")
    return 0


def _scores(path: Path, known_path: Path, known: EdgeScores) -> EdgeScores:
    """Reads scores. **Raises:** `ValueError` for a file that lacks some, or is of another model than the circuit."""
    found = load_scores(path)
    if (found.graph, found.d_model) != (known.graph, known.d_model):
        raise ValueError(f"{path} and {known_path} are of different models. Give scores and a circuit of one.")
    if not found.scored:
        raise ValueError(f"{path} has edges without a score. Give a file with a score of every edge.")
    return found


def _points(curves: dict[tuple[Path, str], ROC]) -> "pd.DataFrame":
    """Makes a row a point of a curve."""
    import pandas as pd

    parts = [
        pd.DataFrame({"scores": str(path), "ranking": by, "false": of.false, "true": of.true})
        for (path, by), of in curves.items()
    ]
    return pd.concat(parts, ignore_index=True)
