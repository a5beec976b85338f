"""`jaxcirc recovery-curve`: what ever smaller parts of a saved circuit carry, next to random ones."""

import argparse

from .._words import counted
from ..view import draw_curves
from ._common import add_seed_option, progress_bar, say_json, Subparsers
from ._options import figure, threshold
from ._tables import add_table_option, lines, records, save_table
from ._trial import add_trial, load_trial, METRIC


def add(subparsers: Subparsers) -> None:
    parser = add_trial(
        subparsers,
        "recovery-curve",
        help="how much ever smaller parts of a circuit carry, next to random ones",
        description="Runs a saved circuit without the rest of the model at ever higher thresholds of its nodes or edges, each next to as "
        "many drawn from the circuit at random, on the prompts of a file.",
        example="--level edges --plot curve.svg",
    )
    parser.add_argument(
        "--cut-at",
        nargs="+",
        type=threshold("--cut-at"),
        metavar="X",
        help="keep nodes with |effect|, or edges with |weight|, above each of these (those that keep all, a half, a quarter and so on)",
    )
    add_seed_option(parser)
    add_table_option(parser, "thresholds")
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw the curve, as SVG, PDF or PNG")
    parser.set_defaults(command=curve)


def curve(arguments: argparse.Namespace) -> int:
    trial = load_trial(arguments, "recovery_curve")
    with progress_bar() as progress:
        table = trial.curve(thresholds=arguments.cut_at, seed=arguments.seed, progress=progress)
    if arguments.plot:
        draw_curves({f"by {arguments.level}": table}, arguments.plot, metric=METRIC)
    save_table(table, arguments.out)
    if arguments.json:
        places = {name: None if path is None else str(path) for name, path in _places(arguments)}
        say_json({"level": arguments.level, "prompts": trial.batches.n, "rows": records(table), **places})
        return 0
    sizes = ((len(getattr(trial.circuit, what)), what[:-1]) for what in ("nodes", "edges"))
    print(
        f"{', '.join(counted(*size) for size in sizes)}, {counted(trial.batches.n, 'prompt')}; kept by their {arguments.level}' "
        f"{'effects' if arguments.level == 'nodes' else 'weights'}\n"
    )
    print(lines(table))
    print(
        "\nfaithfulness: the share of the metric that the part alone recovers, with its 95 % interval over prompts, low to high\n"
        "completeness: what is left without it; 0 is best\nrandom:       the faithfulness of as many, drawn from the circuit at random"
    )
    for name, path in _places(arguments):
        if path is not None:
            print(f"\n{'drawn in' if name == 'plot' else 'written to'} {path}.")
    return 0


def _places(arguments: argparse.Namespace) -> list[tuple[str, object]]:
    return [("out", arguments.out), ("plot", arguments.plot)]
