"""A circuit that is found: the options, the search, what is printed of it, and where it is saved."""

import argparse
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._precision import LOWER
from .._sites import Site
from .._tokens import token_texts
from .._words import counted
from ..attribution import ExactPatching, Gradient, IntegratedGradients
from ..circuits import Circuit, discover
from ..circuits._annotate import annotated
from ..circuits._rows import note_of
from ..data import Prompts
from ..jacobian import Recomputed
from ..models import Transformer
from ..saes import AbstractDictionary
from ._options import count, threshold
from ._results import progress_bar, say_json


METHODS = {
    "integrated": IntegratedGradients,
    "gradient": lambda steps: Gradient(),
    "patching": lambda steps: ExactPatching(),
}


def add_circuit_options(parser: argparse.ArgumentParser, *, node_threshold: float, edge_threshold: float) -> None:
    """Adds the options of every command that finds a circuit."""
    kept = {"node": ("|effect|", node_threshold), "edge": ("|weight|", edge_threshold)}
    for what, (strength, default) in kept.items():
        option = f"--{what}-threshold"
        about = f"keep {what}s with {strength} above this ({default:g})"
        parser.add_argument(option, type=threshold(option), metavar="X", default=default, help=about)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="integrated",
        help="how node effects are found: by integrated gradients, by one gradient, or by a run for each (%(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=count("--steps", "gradients to integrate"),
        default=10,
        metavar="N",
        help="how many gradients are integrated (%(default)s)",
    )
    parser.add_argument(
        "--edges", choices=("clean", "integrated"), default="clean", help="where edges are taken (%(default)s)"
    )
    parser.add_argument(
        "--edge-precision",
        choices=tuple(LOWER),
        help="compute edges by products of this precision, and again in float32 where it could matter (as configured)",
    )


def find_circuit(
    arguments: argparse.Namespace,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    prompts: Prompts,
    tokenizer: Any,
    *,
    positions: bool,
    thresholds: str = "averages",
    batch_size: int | None = None,
) -> Circuit:
    """Finds the circuit of the prompts with a progress bar, and annotates it with their words."""
    with progress_bar() as progress:
        circuit = discover(
            model,
            saes,
            prompts.clean,
            prompts.corrupt,
            prompts.metric(),
            node_threshold=arguments.node_threshold,
            edge_threshold=arguments.edge_threshold,
            method=METHODS[arguments.method](arguments.steps),
            aggregate="none" if positions else "sum",
            edges=arguments.edges,
            edge_precision=arguments.edge_precision,
            thresholds=thresholds,
            batch_size=batch_size,
            mask=prompts.mask,
            progress=progress,
        )
    if positions:
        circuit = circuit.annotate(tokens=token_texts(tokenizer, np.asarray(prompts.clean)[0]))
    sides = [prompts.clean, prompts.corrupt]
    circuit = annotated(circuit, model, saes, sides, tokenizer, prompts.mask)
    begin = {side[0] for tokens in sides for side in np.asarray(tokens).tolist()}
    return circuit.annotate(bos=begin == {tokenizer.bos_token_id})


def given_again(arguments: argparse.Namespace) -> list[str]:
    """The options of `add_prompt_options` by which another command gets the same model, dictionaries and prompts."""
    values = {name: getattr(arguments, name) for name in ("model", "saes", "prompts", "tokenizer", "revision", "limit")}
    words = [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
    flags = ("skip_unusable", "first_answer")
    words += [f"--{name.replace('_', '-')}" for name in flags if getattr(arguments, name)]
    return words + ({True: ["--bos"], False: ["--no-bos"]}.get(arguments.bos, []))


def deliver(circuit: Circuit, arguments: argparse.Namespace, again: list[str]) -> None:
    """Saves the circuit, draws it, and says what was found, where it is, and how to go on; `again` are the options of the same prompts."""
    circuit.save(arguments.out)
    picture = arguments.out / "circuit.html"
    circuit.to_html(picture)
    if arguments.json:
        sizes = {"nodes": len(circuit.nodes), "edges": len(circuit.edges)}
        meta = {key: value for key, value in circuit.meta.items() if key not in ("annotations", "latents")}
        say_json({**sizes, **meta, "folder": str(arguments.out), "picture": str(picture)})
    else:
        show_circuit(circuit)
        print(f"\nsaved to {arguments.out}, drawn in {picture}: open it in a browser.")
        carried = shlex.join(["jaxcirc", "evaluate", "--circuit", str(arguments.out), *again])
        print(
            f"How much of the behaviour its nodes carry, or with --level edges its edges (lower thresholds carry more):\n  {carried}"
        )


def show_circuit(circuit: Circuit, *, most: int = 12) -> None:
    """Prints the strongest nodes and edges."""
    meta, notes = circuit.meta, circuit.meta.annotations or {}
    print(
        f"{counted(len(circuit.nodes), 'node')}, {counted(len(circuit.edges), 'edge')}; "
        f"metric {meta.clean_metric:z.3f}, effect {meta.total_effect:+z.3f}"
    )
    if shares := meta.completeness:
        ends = dict.fromkeys(f"{share:.1%}" for share in (min(shares.values()), max(shares.values())))
        sums = f"node effects sum to {' to '.join(ends)} of the total effect at the {counted(len(shares), 'residual site')}"
        integrated = meta.method is not None and meta.method["name"] == "IntegratedGradients"
        print(f"check: {sums}" if integrated else f"note: {sums}; by this method they need not")
    if certificate := meta.certificate:
        print(
            f"check: relative error of edges {certificate['error']:z.1e} in {counted(certificate['probes'], 'probe')} against float64 "
            f"(limit {certificate['limit']:z.0e})"
        )
    if meta.recomputed:
        print(f"check: {Recomputed(**meta.recomputed)}")
    if not len(circuit.edges):
        print(f"no edge has |weight| above {meta.edge_threshold:g}; the largest is {meta.largest_edge:z.3g}")
    if set(circuit.nodes["kind"]) == {"error"}:
        print("all nodes are errors: these dictionaries say little of what matters here")
    print("\nstrongest nodes")
    for node in circuit.node_rows()[:most]:
        print(f"  {node.effect:+z8.3f}  {node.node:<38} {note_of(notes, node)}")
    print("\nstrongest edges")
    for edge in circuit.edge_rows()[:most]:
        print(f"  {edge.weight:+z8.3f}  {edge.source:<38} -> {edge.target}")


def about_pruning(circuit: Circuit, whose: str) -> str:
    """Says what of a circuit was kept, and how much that carries of the prompts, `whose` they are."""
    pruned = circuit.meta.pruned
    assert pruned is not None
    name = "node_threshold" if pruned["level"] == "nodes" else "edge_threshold"
    ends = [end for end in pruned["interval"] if end is not None]
    interval = " (95 %: {:z.3f} to {:z.3f})".format(*ends) if ends else ""
    return (
        f"With {name.replace('_', ' ')} {circuit.meta[name]:z.3g} it keeps {len(circuit.nodes)} of {pruned['from']['nodes']} nodes and "
        f"{len(circuit.edges)} of {pruned['from']['edges']} edges, and by its {pruned['level']} alone {pruned['reached']:z.3f}{interval} "
        f"of the behaviour ({pruned['faithfulness']:g} was asked for). That is of the {pruned['prompts']} {whose}."
    )
