"""`jaxcirc prune`: the part of a saved circuit that carries as much as is asked for."""

import argparse

from ._common import deliver, given_again, progress_bar, Subparsers
from ._found_circuit import about_pruning
from ._options import new_circuit, share
from ._trial import add_trial, load_trial


def add(subparsers: Subparsers) -> None:
    parser = add_trial(
        subparsers,
        "prune",
        help="make a circuit as small as still carries what is asked for",
        description="Raises the threshold of a saved circuit's edges, or nodes, for as long as what is left carries the asked share of the "
        "metric on the prompts of a file, and saves and draws that. It begins well with a wide circuit, found with low thresholds.",
        example="--faithfulness 0.5 --out small",
        level="edges",
    )
    parser.add_argument(
        "--faithfulness",
        type=share("--faithfulness", "change of the metric"),
        default=0.8,
        metavar="X",
        help="raise a threshold until the circuit alone just recovers this share of the metric (%(default)s)",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=new_circuit("--out"),
        default="pruned",
        help="folder for the circuit (%(default)s)",
    )
    parser.set_defaults(command=prune)


def prune(arguments: argparse.Namespace) -> int:
    trial = load_trial(arguments, "prune")
    with progress_bar() as progress:
        circuit = trial.prune(faithfulness=arguments.faithfulness, progress=progress)
    deliver(circuit, arguments, given_again(arguments))
    if not arguments.json:
        print(about_pruning(circuit, f"pairs of {arguments.prompts.name}; an honest number is that of other prompts"))
    return 0
