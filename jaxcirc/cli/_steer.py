"""`jaxcirc steer`: what a circuit's edges say of a node that is moved, and what the model does."""

import argparse

from ..circuits import Circuit, steer
from ._common import add_prompt_options, load_given, progress_bar, say_json, Subparsers
from ._options import count, number
from ._trial import add_circuit_option


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "steer",
        help="move nodes of a circuit, predicted against measured",
        description=(
            "Moves nodes of a saved circuit towards the corrupt prompt, or beyond, and compares the change of the metric with what the "
            "circuit's edges predict."
        ),
        epilog=(
            "example: jaxcirc steer --circuit circuit --model tiny-gpt2 --saes tiny-gpt2 --prompts prompts.jsonl --strongest 5 "
            "--strengths 0.5 1 2"
        ),
    )
    add_circuit_option(parser)
    add_prompt_options(parser)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--nodes", nargs="+", metavar="NODE", help="names of nodes")
    chosen.add_argument(
        "--strongest",
        type=count("--strongest", "nodes to move"),
        metavar="N",
        help="the N nodes with the largest effects",
    )
    parser.add_argument(
        "--strengths",
        nargs="+",
        type=number("--strengths"),
        default=[1.0],
        metavar="X",
        help="how far: 1 is to the corrupt value (1)",
    )
    parser.set_defaults(command=steer_file)


def steer_file(arguments: argparse.Namespace) -> int:
    circuit = Circuit.load(arguments.circuit)
    circuit.subgraph(arguments.nodes or [])  # names that it does not have show before a large model is read
    names = arguments.nodes or [row.node for row in circuit.node_rows()[: arguments.strongest]]
    model, saes, prompts, _ = load_given(arguments)
    given = (circuit, model, saes, prompts.clean, prompts.corrupt, prompts.metric(), names)
    with progress_bar() as progress:
        table = steer(
            *given,
            strengths=arguments.strengths,
            batch_size=arguments.batch_size,
            mask=prompts.mask,
            progress=progress,
        )
    if arguments.json:
        say_json({"prompts": len(prompts), "rows": table.to_dict("records")})
    else:
        print(table.to_string(index=False, float_format="{:+z.3f}".format))
    return 0
