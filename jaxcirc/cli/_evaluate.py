"""`jaxcirc evaluate`: how much of a behaviour a saved circuit carries."""

import argparse

from .._words import counted
from ..view import draw_curves
from ._common import progress_bar, say_json, Subparsers
from ._options import count, figure
from ._tables import lines, records
from ._trial import add_trial, load_trial, METRIC


def add(subparsers: Subparsers) -> None:
    parser = add_trial(
        subparsers,
        "evaluate",
        help="run a circuit without the rest of the model",
        description="Runs a saved circuit without the rest of the model, and the rest without the circuit, on the prompts of a file.",
        example="--level edges",
    )
    parser.add_argument("--curve", action="store_true", help="at ever higher thresholds, next to random circuits")
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw that curve, as SVG, PDF or PNG")
    parser.add_argument(
        "--minimality",
        type=count("--minimality", "parts to try"),
        metavar="N",
        help="without each of the N strongest nodes or edges, one by one",
    )
    parser.set_defaults(command=evaluate_file)


def evaluate_file(arguments: argparse.Namespace) -> int:
    trial = load_trial(arguments, "evaluate")
    circuit = trial.circuit
    with progress_bar() as progress:
        evaluation = trial.evaluate(progress=progress)
        tables = {}
        if arguments.curve or arguments.plot:
            tables["curve"] = trial.curve(progress=progress)
        if arguments.minimality is not None:
            tables["minimality"] = trial.minimality(most=arguments.minimality, progress=progress)
    if arguments.plot:
        draw_curves({f"by {arguments.level}": tables["curve"]}, arguments.plot, metric=METRIC)
    if arguments.json:
        say_json({**evaluation.as_dict(), **{name: records(table) for name, table in tables.items()}})
        return 0
    sizes = (len(circuit.nodes), "node"), (len(circuit.edges), "edge"), (trial.batches.n, "prompt")
    print(f"{', '.join(counted(*size) for size in sizes)}, by {arguments.level}")
    for name in ("faithfulness", "completeness"):
        low, high = evaluation.interval(name)
        interval = "(one prompt tells nothing of others)" if low != low else f"(95 %: {low:z.3f} to {high:z.3f})"
        print(f"{name:<13} {getattr(evaluation, name):z7.3f}   {interval}")
    moved = evaluation.per_prompt["full"] - evaluation.per_prompt["empty"]
    if abs(moved.mean()) < 2 * moved.std() / len(moved) ** 0.5:
        print(
            "note: ablating every node changes the metric by no more than prompts differ, so these shares of it say little"
        )
    if evaluation.faithfulness < 0.5 and circuit.meta.pruned is None:
        print(
            "note: the circuit alone carries little. Default thresholds of jaxcirc discover are for looking at the strongest "
            "parts; jaxcirc discover --faithfulness 0.8 finds those that carry as much"
        )
    for name in ("full", "circuit", "empty", "complement"):
        print(f"metric, {name:<11} {evaluation.per_prompt[name].mean():+z7.3f}")
    for table in tables.values():
        print("\n" + lines(table))
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0
