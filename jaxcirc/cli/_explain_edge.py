"""`jaxcirc explain-edge`: which heads carry edges of a saved attribution graph, and why these attend."""

import argparse
from typing import Any

from ..attribution_graphs import AttributionGraph, explain_edge, head_loadings
from ..models import Transformer
from ._common import say_json, Subparsers
from ._options import count
from ._saved_graph import (
    add_graph_options,
    load_given_to,
    load_graph,
    names_of,
    nodes_said,
    rows_named,
    said_of,
    tokens_of_graph,
)
from ._tables import add_table_option, save_table


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "explain-edge",
        help="which heads carry an edge of an attribution graph, and why they attend",
        description="Without --edge: splits the strongest edges of a saved attribution graph by the heads that carry them. With --edge, "
        "one edge: its strongest heads, between which positions each carries it, and the pairs of nodes that make it attend there.",
        epilog="example: jaxcirc explain-edge graph.safetensors --model tiny-gpt2 --edge token@1 logits/0@6",
    )
    add_graph_options(parser)
    parser.add_argument(
        "--edge",
        nargs=2,
        metavar=("SOURCE", "TARGET"),
        help="names of its nodes, as this command and `jaxcirc graph` print them (the strongest edges)",
    )
    parser.add_argument(
        "--heads",
        type=count("--heads", "heads to explain"),
        default=3,
        metavar="N",
        help="how many heads of --edge to explain (%(default)s)",
    )
    parser.add_argument(
        "--top",
        type=count("--top", "edges, or pairs of nodes, to print"),
        default=8,
        metavar="N",
        help="how many edges to print, or pairs of nodes for each head of --edge (%(default)s)",
    )
    add_table_option(parser, "heads")
    parser.set_defaults(command=explain)


def explain(arguments: argparse.Namespace) -> int:
    graph = load_graph(arguments)
    rows = None if arguments.edge is None else rows_named("--edge", graph, arguments.edge)
    if rows and rows[1] not in graph.targets:
        raise ValueError(
            f"--edge: nothing leads into {names_of(graph.table)[rows[1]]!r}. SOURCE comes first, and then TARGET."
        )
    model, transcoders = load_given_to(arguments, graph)
    if rows is None:
        facts = _by_heads(arguments, graph, model, transcoders)
    else:
        facts = _one_edge(arguments, graph, model, transcoders, *rows)
    if arguments.json:
        say_json({"model": model.name, **facts, "out": str(arguments.out) if arguments.out else None})
    elif arguments.out:
        print(f"\nwritten to {arguments.out}.")
    return 0


def _by_heads(
    arguments: argparse.Namespace, graph: AttributionGraph, model: Transformer, transcoders: Any
) -> dict[str, Any]:
    """Splits the strongest edges, and prints them."""
    found, names = head_loadings(graph, model, transcoders, most=arguments.top), names_of(graph.table)
    whole = found.table(max(1, found.heads.size))
    for column in ("target", "source"):
        whole[column] = [names[row] for row in whole[column]]
    save_table(whole, arguments.out)
    edges, said = [], nodes_said(graph)
    for i, (target, source) in enumerate(found.edges.tolist()):
        passed = found.heads[i]
        heads = [
            {"layer": layer, "head": head, "loading": float(passed[layer, head])}
            for layer, head in sorted(zip(*passed.nonzero(), strict=True), key=lambda at: -abs(passed[at]))
        ]
        heads = [{**each, "layer": int(each["layer"]), "head": int(each["head"])} for each in heads]
        edges.append(
            {"source": names[source], "target": names[target], "value": float(found.values[i]), "heads": heads}
        )
        if not arguments.json:
            print(f"{found.values[i]:+z9.4f}  {said[source]} -> {said[target]}")
            parts = "  ".join(f"{each['layer']}.{each['head']} {each['loading']:+z.4f}" for each in heads[:5])
            print(f"{'':>11}{parts or 'past all attention'}")
    if not arguments.json:
        print(
            "\nUnder each edge the heads that carry most of it, LAYER.HEAD. Heads of one layer and what goes past them sum to the edge; "
            "those of\nseveral layers do not. --edge SOURCE TARGET says why they attend."
        )
    return {"edges": edges}


def _one_edge(
    arguments: argparse.Namespace,
    graph: AttributionGraph,
    model: Transformer,
    transcoders: Any,
    source: int,
    target: int,
) -> dict[str, Any]:
    """Explains an edge, and prints it."""
    found = explain_edge(graph, model, transcoders, target, source, heads=arguments.heads, pairs=arguments.top)
    texts, heads = tokens_of_graph(graph), []
    if not arguments.json:
        said = nodes_said(graph)
        print(f"{found.value:+z.4f}  {said[source]} -> {said[target]}")
    for each in found.heads:
        names = names_of(each.score.records)
        pairs = [
            {"value": float(value), "query": names[query], "key": names[key]}
            for value, (query, key) in zip(each.score.values, each.score.pairs.tolist(), strict=True)
        ]
        about = {name: getattr(each, name) for name in ("layer", "head", "loading", "query", "key", "between")}
        heads.append({**about, "attends": each.attends, "score": each.score.score, "pairs": pairs})
        if not arguments.json:
            _show(each, texts)
            show_pairs(each.score, texts)
    if not (found.heads or arguments.json):
        print("no head carries it: it goes past all attention")
    save_table(found.table(), arguments.out)
    return {"source": arguments.edge[0], "target": arguments.edge[1], "value": found.value, "heads": heads}


def _show(each: Any, texts: list[str]) -> None:
    key, query = f"{each.key} {texts[each.key]!r}", f"{each.query} {texts[each.query]!r}"
    print(
        f"\nhead {each.layer}.{each.head} carries {each.loading:+z.4f}, of it {each.between:+z.4f} from {key} to {query}"
    )
    print(f"  it attends there with {each.attends:z.1%}; its score there is {each.score.score:+z.3f}, of which")


def show_pairs(score: Any, texts: list[str]) -> None:
    """Prints the pairs of an attention score."""
    said = said_of(score.records, texts)
    width = max((len(said[query]) for query in score.pairs[:, 0]), default=0)
    for value, (query, key) in zip(score.values, score.pairs.tolist(), strict=True):
        print(f"  {value:+z9.4f}  query {said[query]:<{width}}  key {said[key]}")
