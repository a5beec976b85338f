"""`jaxcirc evaluate`: how much of a behaviour a saved circuit carries."""

import argparse
from typing import Any, TYPE_CHECKING

from .._words import counted
from ..circuits import Circuit, MeanAblation, ResampleAblation, Trial, ZeroAblation
from ..view import draw_curves
from ._common import add_prompt_options, load_given, progress_bar, say_json, Subparsers
from ._options import count, existing_folder, picture


if TYPE_CHECKING:
    import pandas as pd

ABLATIONS = {"mean": MeanAblation, "zero": ZeroAblation, "resample": ResampleAblation}


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "evaluate",
        help="run a circuit without the rest of the model",
        description="Runs a saved circuit without the rest of the model, and the rest without the circuit, on the prompts of a file.",
        epilog=(
            "example: jaxcirc evaluate --circuit circuit --model tiny-gpt2 --saes tiny-gpt2 --prompts held-out.jsonl --level edges"
        ),
    )
    parser.add_argument(
        "--circuit",
        metavar="FOLDER",
        required=True,
        type=existing_folder("--circuit"),
        help="folder that `jaxcirc discover` wrote",
    )
    add_prompt_options(parser, prompts="file of prompt pairs, best not the circuit's own")
    parser.add_argument(
        "--level", choices=("nodes", "edges"), default="nodes", help="nodes or edges: what is ablated (%(default)s)"
    )
    parser.add_argument(
        "--ablation", choices=ABLATIONS, default="mean", help="to what (%(default)s, of the corrupt prompts)"
    )
    parser.add_argument(
        "--start-layer",
        type=count("--start-layer", "layers to leave alone", least=0),
        default=0,
        metavar="N",
        help="leave earlier layers alone (%(default)s)",
    )
    parser.add_argument(
        "--errors",
        choices=("default", "keep", "remove"),
        default="default",
        help="what happens to error nodes (%(default)s)",
    )
    parser.add_argument("--curve", action="store_true", help="at ever higher thresholds, next to random circuits")
    parser.add_argument("--plot", type=picture("--plot"), metavar="FILE", help="draw that curve as an SVG file")
    parser.add_argument(
        "--minimality",
        type=count("--minimality", "parts to try"),
        metavar="N",
        help="without each of the N strongest nodes or edges, one by one",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=evaluate_file)


def evaluate_file(arguments: argparse.Namespace) -> int:
    circuit = Circuit.load(arguments.circuit)
    model, saes, prompts, _ = load_given(arguments)
    trial = Trial(
        circuit,
        model,
        saes,
        prompts.clean,
        prompts.corrupt,
        prompts.metric(),
        level=arguments.level,
        ablation=ABLATIONS[arguments.ablation](),
        start_layer=arguments.start_layer,
        errors=arguments.errors,
        batch_size=arguments.batch_size,
        mask=prompts.mask,
        verb="evaluate",
    )
    with progress_bar() as progress:
        evaluation = trial.evaluate(progress=progress)
        tables = {}
        if arguments.curve or arguments.plot:
            tables["curve"] = trial.curve(progress=progress)
        if arguments.minimality is not None:
            tables["minimality"] = trial.minimality(most=arguments.minimality, progress=progress)
    if arguments.plot:
        draw_curves({f"by {arguments.level}": tables["curve"]}, arguments.plot)
    if arguments.json:
        say_json({**evaluation.as_dict(), **{name: _records(table) for name, table in tables.items()}})
        return 0
    sizes = (len(circuit.nodes), "node"), (len(circuit.edges), "edge"), (len(prompts), "prompt")
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
        print("\n" + table.to_string(index=False, float_format="{:z.3g}".format))
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Makes plain JSON of a table, which has no NaN: the intervals of one prompt are null."""
    return [
        {name: None if value != value else value for name, value in row.items()} for row in table.to_dict("records")
    ]
