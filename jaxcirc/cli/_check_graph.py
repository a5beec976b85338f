"""`jaxcirc check-graph`: what a saved attribution graph predicts beside what the model does."""

import argparse
from typing import Any

import numpy as np

from .._words import counted
from ..attribution_graphs import check_graph
from ..view import draw_graph_checks
from ._common import say_json, Subparsers
from ._frozen import held, SAID
from ._options import count, figure, number
from ._saved_graph import add_graph_options, load_given_to, load_graph, names_of, nodes_said, rows_named
from ._tables import add_table_option, save_table


HELD = ["patterns", "layer_norms"]


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "check-graph",
        help="a saved attribution graph against interventions",
        description="Multiplies latents of a saved attribution graph in the model, one at a time, and compares the change of every later "
        "node with what the graph predicts. With patterns and norms held both are equal to rounding; with --freeze nothing and --live-from "
        "they differ by what the graph leaves out.",
        epilog="example: jaxcirc check-graph graph.safetensors --model tiny-gpt2 --factors 0 --plot checks.svg",
    )
    add_graph_options(parser)
    parser.add_argument("--nodes", nargs="+", metavar="NODE", help="names of nodes (the ten latents of most influence)")
    parser.add_argument(
        "--factors",
        nargs="+",
        type=number("--factors"),
        default=[0.0, 2.0],
        metavar="X",
        help="what each latent is multiplied by; 0 takes it out (0 2)",
    )
    add_holding_options(parser)
    parser.add_argument(
        "--top",
        type=count("--top", "changes to print"),
        default=12,
        metavar="N",
        help="how many changes to print, the largest (%(default)s)",
    )
    add_table_option(parser, "changes")
    parser.add_argument(
        "--plot", type=figure("--plot"), metavar="FILE", help="draw measured by predicted, as SVG, PDF or PNG"
    )
    parser.set_defaults(command=check)


def add_holding_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is held and what follows when latents are moved."""
    parser.add_argument(
        "--freeze",
        nargs="+",
        default=HELD,
        metavar="WHAT",
        help=f"what is held: {SAID}; or any sites (patterns layer_norms)",
    )
    parser.add_argument(
        "--live-from",
        type=count("--live-from", "layers have latents that stay", least=0),
        metavar="LAYER",
        help="latents of this layer and of later ones are computed anew (none are, they stay as they were)",
    )


def check(arguments: argparse.Namespace) -> int:
    graph = load_graph(arguments)
    nodes = None if arguments.nodes is None else rows_named("--nodes", graph, arguments.nodes)
    model, transcoders = load_given_to(arguments, graph)
    given = {"frozen": held(arguments.freeze, model), "live_from": arguments.live_from}
    found = check_graph(graph, model, transcoders, nodes, strengths=arguments.factors, **given)
    if arguments.plot:
        draw_graph_checks(found, arguments.plot)
    names = np.array(names_of(graph.table), object)
    table = found.rename(columns={"strength": "factor"})
    for column in ("node", "target"):
        table[column] = names[found[column].to_numpy(int)]
    save_table(table, arguments.out)
    order = np.argsort(-np.abs(found["measured"].to_numpy()), kind="stable")[: arguments.top]
    facts: dict[str, Any] = {
        "model": model.name,
        "nodes": list(dict.fromkeys(table["node"])),
        "factors": arguments.factors,
        "frozen": arguments.freeze,
        "live_from": arguments.live_from,
        "changes": len(table),
        **_agreement(found["predicted"].to_numpy(float), found["measured"].to_numpy(float)),
        "rows": table.iloc[order].to_dict("records"),
        "out": str(arguments.out) if arguments.out else None,
        "plot": str(arguments.plot) if arguments.plot else None,
    }
    if arguments.json:
        say_json(facts)
        return 0
    follow = "" if arguments.live_from is None else f"; latents from layer {arguments.live_from} on computed anew"
    print(
        f"{counted(len(facts['nodes']), 'latent')} of {arguments.graph} moved in {model.name}, {counted(len(table), 'change')} of later "
        "nodes"
    )
    print(f"held: {', '.join(arguments.freeze)}{follow}")
    if facts["largest_change"]:
        correlation = "" if facts["correlation"] is None else f"; correlation {facts['correlation']:z.4f}"
        print(
            f"largest difference of predicted and measured: {facts['largest_difference'] / facts['largest_change']:z.2g} of the largest "
            f"change"
            f"{correlation}"
        )
    said = nodes_said(graph)
    print("\npredicted   measured   by multiplying, and what changes")
    for row in found.iloc[order].itertuples():
        print(
            f"{row.predicted:+z9.4f}  {row.measured:+z9.4f}   {said[row.node]} by {row.strength:g} -> {said[row.target]}"
        )
    for name, at in (("written to", arguments.out), ("drawn in", arguments.plot)):
        if at:
            print(f"\n{name} {at}.")
    return 0


def _agreement(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float | None]:
    """How near predictions are to what was measured."""
    varies = len(measured) > 1 and np.ptp(predicted) > 0 and np.ptp(measured) > 0
    return {
        "largest_change": float(np.abs(measured).max(initial=0)),
        "largest_difference": float(np.abs(predicted - measured).max(initial=0)),
        "correlation": float(np.corrcoef(predicted, measured)[0, 1]) if varies else None,
    }
