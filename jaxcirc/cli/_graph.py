"""`jaxcirc graph`: the attribution graph of a prompt."""

import argparse
from typing import Any

import numpy as np

from .._metrics import LogitDiff
from .._tokens import token_texts
from .._words import counted
from ..attribution_graphs import attribution_graph
from ._common import add_text_options, load_model, progress_bar, say_json, Subparsers, tokenizer_of, tokens_of
from ._edges import check_known_tokens, metric_text, token_of
from ._options import count, figure, new_file, part
from ._results import add_top_option
from ._saved_graph import add_dictionaries, check_dictionaries_there, load_dictionaries, names_of, nodes_said


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "graph",
        help="the attribution graph of a prompt",
        description="Which latents of transcoders (neurons, without any), tokens, biases and errors contribute how much to which others, "
        "and to the logits at the end of a prompt, with attention patterns and norms' scales held.",
        epilog="example: jaxcirc graph --model tiny-gpt2 --prompt 'The teachers that the doctor likes' --answer ' are' --foil ' is' "
        "--out graph.safetensors --json-graph graph.json",
    )
    add_text_options(parser)
    add_dictionaries(parser)
    parser.add_argument(
        "--answer", metavar="TOKEN", help="whose logit: one token's text, or its id (the likeliest ones)"
    )
    parser.add_argument("--foil", metavar="TOKEN", help="whose logit is subtracted (none)")
    parser.add_argument(
        "--max-nodes",
        type=count("--max-nodes", "latents to have rows"),
        default=1000,
        metavar="N",
        help="latents that have rows, the most influential (%(default)s)",
    )
    for name, what, default in (("node", "nodes", 0.8), ("edge", "edges between these", 0.98)):
        parser.add_argument(
            f"--{name}-influence",
            type=part(f"--{name}-influence", "influence"),
            default=default,
            metavar="X",
            help=f"the share of all influence that the kept {what} make up (%(default)s)",
        )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=new_file("--out", ".safetensors"),
        help="file for the whole graph, .safetensors",
    )
    parser.add_argument(
        "--json-graph",
        type=new_file("--json-graph", ".json"),
        metavar="FILE",
        help="file for the kept part as JSON, for circuit-tracer's viewer and Neuronpedia",
    )
    parser.add_argument(
        "--plot", type=figure("--plot"), metavar="FILE", help="draw the strongest edges, as SVG, PDF or PNG"
    )
    add_top_option(parser, "nodes and edges", 12)
    parser.set_defaults(command=graph)


def graph(arguments: argparse.Namespace) -> int:
    check_dictionaries_there(arguments)
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    answer, foil = (token_of(tokenizer, f"--{name}", getattr(arguments, name)) for name in ("answer", "foil"))
    if foil is not None and answer is None:
        raise ValueError("--foil is subtracted from an answer's logit. Give --answer, too.")
    transcoders = load_dictionaries(arguments)
    model = load_model(arguments)
    check_known_tokens(model, {"--answer": answer, "--foil": foil})
    targets: Any = None if answer is None else [answer]
    if answer is not None and foil is not None:
        targets = {metric_text(tokenizer, answer, foil): LogitDiff(answer, foil)}
    shares = {f"{name}_threshold": getattr(arguments, f"{name}_influence") for name in ("node", "edge")}
    settings = {"max_nodes": arguments.max_nodes, **shares}
    with progress_bar() as progress:
        found = attribution_graph(model, transcoders, tokens, targets=targets, progress=progress, **settings)
    texts = token_texts(tokenizer, np.asarray(tokens))
    if tokenizer is not None:
        found = found.annotate(tokenizer)
    if arguments.out:
        found.save(arguments.out)
    if arguments.json_graph:
        found.to_json(arguments.json_graph, tokens=texts if tokenizer is None else tokenizer)
    if arguments.plot:
        found.to_figure(arguments.plot, tokens=texts)
    nodes = found.nodes
    edges = [(s, t, found.weight(t, s)) for t, s in found.strongest(arguments.top).tolist()]
    facts = {
        "model": model.name,
        "nodes": len(nodes),
        "edges": int(found.edges.sum()),
        "replacement_score": found.replacement_score,
        "completeness_score": found.completeness_score,
        "out": str(arguments.out) if arguments.out else None,
        "json_graph": str(arguments.json_graph) if arguments.json_graph else None,
        "plot": str(arguments.plot) if arguments.plot else None,
    }
    names, said = names_of(found.table), nodes_said(found)
    first = np.argsort(-nodes["influence"].to_numpy(), kind="stable")[: arguments.top]
    if arguments.json:
        rows = [{"node": names[i], "influence": float(nodes["influence"].iloc[i])} for i in first]
        links = [{"source": names[s], "target": names[t], "weight": weight} for s, t, weight in edges]
        say_json({**facts, "tokens": texts, "strongest_nodes": rows, "strongest_edges": links})
        return 0
    print(f"{counted(facts['nodes'], 'node')} and {counted(facts['edges'], 'edge')} kept of the graph of {model.name}")
    print(
        f"of the influence on the outputs {found.replacement_score:.1%} begins at tokens and not at errors; "
        f"{found.completeness_score:.1%} of nodes' inputs are not errors"
    )
    print("\nmost influence")
    for i in first:
        print(f"  {nodes['influence'].iloc[i]:z8.4f}  {said[i]}")
    print("\nedges of most influence")
    for source, target, weight in edges:
        print(f"  {weight:+z9.4f}  {said[source]:<44} -> {said[target]}")
    for path in (arguments.out, arguments.json_graph, arguments.plot):
        if path:
            print(f"\nsaved to {path}.")
    return 0
