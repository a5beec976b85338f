"""`jaxcirc circuit-curve`: how much of a behaviour circuits of increasing size carry, edges ranked by attribution or by a file's scores."""

import argparse
from typing import Any

import numpy as np

from .._words import counted
from ..data import Prompts
from ..graph import component_graph, ComponentGraph
from ..localisation import benchmark_graph, circuit_curve, CircuitCurve, EdgeScores, load_scores, save_scores
from ..localisation._score_files import SUFFIXES
from ..models import Transformer
from ..view import draw_circuit_curve
from ._attributed import add_attribution_options, benchmark_scores, STEPS
from ._common import add_prompt_options, load_model, load_prompt_file, say_json, Subparsers, tokenizer_of
from ._localised import add_how_option, RANKINGS
from ._options import existing_file, figure, new_file
from ._tables import records


AREAS = {"cpr": "area under faithfulness", "cmd": "area between it and 1", "acc_auc": "mean accuracy"}


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "circuit-curve",
        help="how much circuits of increasing size carry, as the circuit-localisation benchmark measures it",
        description="Scores every edge between the components of a model, by attribution with integrated gradients, and runs circuits of "
        "the best edges, from a thousandth of them to all, with all others as on the corrupt prompt.",
        epilog="example: jaxcirc circuit-curve --model tiny-gpt2 --prompts prompts.jsonl --out importances.json --plot curve.svg",
    )
    add_prompt_options(parser, dictionaries=False, batches=False)
    parser.add_argument(
        "--test-prompts",
        type=existing_file("--test-prompts"),
        metavar="FILE",
        help="prompts that circuits are measured on (those that edges are scored on)",
    )
    parser.add_argument(
        "--scores",
        type=existing_file("--scores"),
        metavar="FILE",
        help="take the scores of a file, as the benchmark's .json and .pt, and compute none",
    )
    add_attribution_options(parser, of=", without --scores")
    add_how_option(parser)
    parser.add_argument(
        "--out",
        type=new_file("--out", *SUFFIXES),
        metavar="FILE",
        help="file for the scores of edges, as the benchmark's .json or .pt",
    )
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw the curves, as SVG, PDF or PNG")
    parser.set_defaults(command=curve)


def curve(arguments: argparse.Namespace) -> int:
    for option in ("steps", "derivatives"):
        if arguments.scores is not None and getattr(arguments, option) is not None:
            raise ValueError(
                f"--{option} is of scores that are computed, and --scores takes those of a file. Leave one out."
            )
    tokenizer = tokenizer_of(arguments)
    prompts = load_prompt_file(arguments, tokenizer)
    test = prompts if arguments.test_prompts is None else load_prompt_file(arguments, tokenizer, arguments.test_prompts)
    model = load_model(arguments)
    if arguments.out or arguments.scores:
        benchmark_graph(model)  # whether these files have a form for the model shows before the work
    graph = component_graph(model, embeddings="tokens", shared="each")
    scores = _scores(arguments, model, graph, prompts)
    measure = lambda by: circuit_curve(
        model, test.clean, test.corrupt, test.metric(), scores, graph=graph, by=by, how=arguments.how, mask=test.mask
    )
    curves = {by: measure(by) for by in RANKINGS}
    if arguments.out:
        save_scores(EdgeScores.of(model, scores), arguments.out)
    if arguments.plot:
        draw_circuit_curve(curves, arguments.plot, metric="logit difference")
    if arguments.json:
        say_json(_summary(arguments, model, graph, prompts, curves))
    else:
        _show(arguments, model, graph, prompts, curves)
    return 0


def _scores(arguments: argparse.Namespace, model: Transformer, graph: ComponentGraph, prompts: Prompts) -> np.ndarray:
    """Scores `[sender receiver]` of a file, or by attribution, above 0 for edges that help."""
    if arguments.scores is not None:
        return load_scores(arguments.scores, model).scores
    return benchmark_scores(arguments, model, prompts, graph).mean(0)


def _summary(
    arguments: argparse.Namespace,
    model: Transformer,
    graph: ComponentGraph,
    prompts: Prompts,
    curves: dict[str, CircuitCurve],
) -> dict[str, Any]:
    named = lambda path: None if path is None else str(path)
    found = {
        by: {
            "rows": records(each.table()),
            **{
                name: [None if value != value else value for value in values] for name, values in each.summary().items()
            },
        }
        for by, each in curves.items()
    }
    signed = curves["signed"]
    return {
        "model": model.name,
        "edges": graph.n_edges,
        "prompts": len(prompts),
        "test_prompts": len(signed.full),
        "steps": None if arguments.scores else arguments.steps or STEPS,
        "derivatives": None if arguments.scores else arguments.derivatives or "exact",
        "scores": named(arguments.scores),
        "full": float(signed.full.mean()),
        "empty": float(signed.empty.mean()),
        **found,
        "out": named(arguments.out),
        "plot": named(arguments.plot),
    }


def _show(
    arguments: argparse.Namespace,
    model: Transformer,
    graph: ComponentGraph,
    prompts: Prompts,
    curves: dict[str, CircuitCurve],
) -> None:
    signed = curves["signed"]
    where = f"by {arguments.scores.name}" if arguments.scores else f"on {counted(len(prompts), 'prompt')}"
    print(
        f"{counted(graph.n_edges, 'edge')} of {model.name} scored {where}, circuits measured on {counted(len(signed.full), 'prompt')}; "
        f"metric {signed.full.mean():z.3f}, without any edge {signed.empty.mean():z.3f}"
    )
    moved = signed.full - signed.empty
    if abs(moved.mean()) < 2 * moved.std() / len(moved) ** 0.5:
        print(
            "note: ablating every edge changes the metric by no more than prompts differ, so these shares of it say little"
        )
    print("\n              by signed score              by absolute score")
    print("size   edges  faithfulness       accuracy  faithfulness       accuracy")
    for rows in zip(*(each.table().to_dict("records") for each in curves.values()), strict=True):
        values = "".join(f"  {_interval(row)}{row['accuracy']:z6.2f}" for row in rows)
        print(f"{rows[0]['size']:<6.3g}{rows[0]['edges']:>6}{values}")
    print()
    summaries = {by: each.summary() for by, each in curves.items()}
    for name, by in (("cpr", "signed"), ("cmd", "absolute"), ("acc_auc", "signed"), ("acc_auc", "absolute")):
        value, low, high = summaries[by][name]
        interval = "(one prompt tells nothing of others)" if low != low else f"(95 %: {low:z.3f} to {high:z.3f})"
        print(f"{name.replace('_', '-').upper():<8} {value:z7.3f}   {interval}   {AREAS[name]}, by {by} score")
    for path, what in ((arguments.out, "scores written to"), (arguments.plot, "drawn in")):
        if path:
            print(f"\n{what} {path}.")


def _interval(row: dict[str, Any]) -> str:
    value, low, high = (row[f"faithfulness{end}"] for end in ("", "_low", "_high"))
    ends = "" if low != low else f"({low:z.2f} to {high:z.2f})"
    return f"{value:z5.2f} {ends:<16}"
