"""Attribution graphs on the command line: dictionaries, a saved graph, and how its nodes are named."""

import argparse
import difflib
from collections.abc import Iterable
from pathlib import Path

from ..attribution_graphs import AttributionGraph
from ..attribution_graphs._described import name_of
from ..attribution_graphs._given import Transcoders
from ..attribution_graphs._table import NOWHERE, Table
from ..interop import check_pretrained, check_saes, load_cross_layer_transcoder, load_saes
from ..models import Transformer
from ._loading import add_model_option, add_revision_option, load_model
from ._options import existing_file


def add_dictionaries(parser: argparse.ArgumentParser) -> None:
    """Adds `--transcoders` and `--cross-layer-transcoder`, of which one or none is given."""
    dictionaries = parser.add_mutually_exclusive_group()
    dictionaries.add_argument(
        "--transcoders", metavar="DICTIONARIES", help="a folder of dictionaries, one for each MLP (neurons)"
    )
    dictionaries.add_argument(
        "--cross-layer-transcoder", metavar="DICTIONARIES", help="a folder, or a Hub id, of one for all layers"
    )


def add_graph_options(parser: argparse.ArgumentParser) -> None:
    """Adds the graph, the model and the dictionaries that it was made with."""
    parser.add_argument(
        "graph", metavar="FILE", type=existing_file("the graph's file"), help="what `jaxcirc graph --out` wrote"
    )
    add_model_option(parser)
    add_dictionaries(parser)
    add_revision_option(parser)


def load_dictionaries(arguments: argparse.Namespace) -> Transcoders:
    """Loads the dictionaries that are asked for; `None` are neurons."""
    if arguments.cross_layer_transcoder:
        return load_cross_layer_transcoder(arguments.cross_layer_transcoder)
    return load_saes(arguments.transcoders) if arguments.transcoders else None


def check_dictionaries_there(arguments: argparse.Namespace) -> None:
    """ValueError if nothing is at `--transcoders`."""
    if arguments.transcoders:
        check_saes(arguments.transcoders)


def load_graph(arguments: argparse.Namespace) -> AttributionGraph:
    """Loads the graph, before anything large is read. **Raises:** `ValueError` for a file of another kind, and where there is no model."""
    path: Path = arguments.graph
    if path.suffix != ".safetensors":
        known = " JSON holds only what was kept of a graph." if path.suffix == ".json" else ""
        raise ValueError(f"{path} is no graph in safetensors, which `jaxcirc graph --out` writes.{known}")
    graph = AttributionGraph.load(path)
    check_pretrained(arguments.model, arguments.revision)
    check_dictionaries_there(arguments)
    return graph


def load_given_to(arguments: argparse.Namespace, graph: AttributionGraph) -> tuple[Transformer, Transcoders]:
    """Loads the dictionaries and the model of a graph."""
    transcoders = load_dictionaries(arguments)
    model = load_model(arguments)
    graph.check_model(model)
    return model, transcoders


def names_of(table: Table) -> list[str]:
    """The names of nodes, such as `blocks.1.hook_mlp_out/196@3`."""
    return [name_of(table, i) for i in range(len(table))]


def rows_named(option: str, graph: AttributionGraph, names: list[str]) -> list[int]:
    """The rows of nodes of these names. **Raises:** `ValueError` for a name that the graph does not have."""
    known = {name: row for row, name in enumerate(names_of(graph.table))}
    said = nodes_said(graph)
    for name in names:
        if name not in known:
            there = ", ".join(said[known[near]] for near in _nearest(name, known)[:5])
            raise ValueError(
                f"{option}: the graph has no node {name!r}. It has {there}; `jaxcirc graph --top N` prints N names."
            )
    return [known[name] for name in names]


def _nearest(name: str, known: Iterable[str]) -> list[str]:
    """Nodes of this name elsewhere, or at this site, those at this position first; else those that are written most alike."""
    known = list(known)
    bare, at = name.partition("@")[::2]
    alike = lambda part: [each for each in known if part(each.partition("@")[0]) == part(bare)]
    near = alike(str) or alike(lambda text: text.rpartition("/")[0] or text)
    if not near:
        return difflib.get_close_matches(name, known, n=5, cutoff=0)
    return sorted(near, key=lambda each: each.partition("@")[2] != at)


def tokens_of_graph(graph: AttributionGraph) -> list[str]:
    """The prompt's tokens as text where the graph has that, else their ids."""
    return [str(token) for token in graph.meta.get("prompt_tokens") or graph.meta["tokens"]]


def said_of(table: Table, texts: list[str], outputs: dict[str, str] | None = None) -> list[str]:
    """Nodes for people: the name, and the token where it is, or the token that an output is of."""
    said = []
    for name, pos, unit in zip(names_of(table), table.pos.tolist(), table.unit.tolist(), strict=True):
        if name.startswith("logits/"):
            text = (outputs or {}).get(str(unit), "")
            said.append(f"{name} {text}" if text else name)
        else:
            said.append(name if pos == NOWHERE else f"{name} {texts[pos]!r}")
    return said


def nodes_said(graph: AttributionGraph) -> list[str]:
    """The nodes of a graph, for people."""
    named, texts = graph.meta.get("targets"), graph.meta.get("output_texts") or {}
    outputs = (
        {unit: repr(text) for unit, text in texts.items()}
        if named is None
        else {str(i): text for i, text in enumerate(named)}
    )
    return said_of(graph.table, tokens_of_graph(graph), outputs)
