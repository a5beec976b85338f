"""`jaxcirc minimality`: what a saved circuit carries without each of its strongest parts."""

import argparse

from .._words import counted
from ._common import progress_bar, say_json, Subparsers
from ._options import count
from ._tables import add_table_option, records, save_table
from ._trial import add_trial, load_trial


def add(subparsers: Subparsers) -> None:
    parser = add_trial(
        subparsers,
        "minimality",
        help="take parts out of a circuit one by one: is each needed?",
        description="Takes the strongest nodes or edges out of a saved circuit, each by itself, and runs what is left of it without the "
        "rest of the model, on the prompts of a file.",
        example="--strongest 10",
    )
    parser.add_argument(
        "--strongest",
        type=count("--strongest", "parts to try"),
        default=50,
        metavar="N",
        help="the N nodes or edges with the largest effects or weights (%(default)s)",
    )
    add_table_option(parser, "parts")
    parser.set_defaults(command=parts)


def parts(arguments: argparse.Namespace) -> int:
    trial = load_trial(arguments, "minimality")
    with progress_bar() as progress:
        table = trial.minimality(most=arguments.strongest, progress=progress)
    save_table(table, arguments.out)
    whole = float((table["without"] + table["lost"]).iloc[0])
    if arguments.json:
        facts = {"level": arguments.level, "prompts": trial.batches.n, "faithfulness": whole, "rows": records(table)}
        say_json({**facts, "out": str(arguments.out) if arguments.out else None})
        return 0
    what, size = arguments.level[:-1], len(getattr(trial.circuit, arguments.level))
    print(
        f"{len(table)} of {counted(size, what)} taken out one by one, {counted(trial.batches.n, 'prompt')}; the whole circuit carries "
        f"{whole:z.3f} of the metric"
    )
    print(f"\n    lost  without  {'effect' if what == 'node' else 'weight'}  {what}")
    for row in table.to_dict("records"):
        name, strength = (
            (row["node"], row["effect"]) if what == "node" else (f"{row['source']} -> {row['target']}", row["weight"])
        )
        print(f"{row['lost']:+z8.3f} {row['without']:z8.3f} {strength:+z7.3f}  {name}")
    print(
        "\nA part lost without loss is not needed, or another does the same; one with a negative loss works against the rest."
    )
    if arguments.out:
        print(f"\nwritten to {arguments.out}.")
    return 0
