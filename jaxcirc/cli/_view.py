"""`jaxcirc view`: a saved circuit or attribution graph as a page to explore, and with a model behind it."""

import argparse
import functools as ft
import webbrowser
from pathlib import Path
from typing import Any

from ..attribution_graphs import AttributionGraph, check_graph
from ..attribution_graphs._table import LATENT
from ..circuits import Circuit, Trial
from ..explorer import ADDRESS, Description, Live, Moved, page, server_of, write_page
from ..interop._text_tokenizer import load_text_tokenizer
from ._common import add_prompt_options, load_given, load_model, say_json, Subparsers
from ._options import count, page as page_file
from ._saved_graph import add_dictionaries, load_dictionaries, names_of


TARGETS = 12  # of a moved latent, in a graph
OF_CIRCUIT = (
    "Moves it towards what it is on the corrupt prompts, in the whole model; 1 is all the way. Predicted by its edges."
)
OF_GRAPH = (
    "Multiplies it in the whole model, with later latents, patterns and norms as they then are; 0 takes it out. Predicted by the graph's "
    "edges along all paths. Listed are the targets that move most."
)


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "view",
        help="explore a saved circuit or attribution graph, and move its nodes in the model",
        description="Opens what `discover`, `demo` or `graph` saved as a page in the browser, served to this machine alone until Ctrl-C; "
        "or writes the page to a file, which opens without this library and without a network. With --model, and --saes and --prompts "
        "for a circuit or the dictionaries of a graph, the served page moves the pinned node in the model and shows the change beside "
        "what its edges predict.",
        epilog="example: jaxcirc view jaxcirc-demo --model tiny-gpt2 --saes tiny-gpt2 --prompts jaxcirc-demo/prompts.jsonl",
    )
    parser.add_argument(
        "path", metavar="PATH", type=Path, help="a circuit's folder, or a graph's .safetensors or .json"
    )
    parser.add_argument("--out", type=page_file("--out"), metavar="FILE", help="file for the page; nothing is served")
    parser.add_argument(
        "--port",
        type=count("--port", "the port to serve at", least=0),
        default=0,
        metavar="N",
        help="(any that is free)",
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    add_prompt_options(parser, model=False)
    add_dictionaries(parser)
    parser.set_defaults(command=view)


def view(arguments: argparse.Namespace) -> int:
    saved = load(arguments.path)
    _check(arguments, saved)
    described = _described(arguments, saved)
    if arguments.out is not None:
        write_page(arguments.out, described)
        if arguments.json:
            say_json({"page": str(arguments.out)})
        else:
            print(f"saved to {arguments.out}: open it in a browser.")
        return 0
    live = None if arguments.model is None else _live(arguments, saved)
    try:
        server = server_of(page(described, live), live, arguments.port)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    with server:
        url = f"http://{ADDRESS}:{server.server_address[1]}/"
        if arguments.json:
            say_json({"url": url})
        else:
            print(f"{arguments.path} at {url} until Ctrl-C.", flush=True)
        if not arguments.no_browser:
            webbrowser.open_new_tab(url)
        server.serve_forever()
    return 0


def load(path: Path) -> Circuit | AttributionGraph:
    """Loads what is saved at a path. **Raises:** `ValueError` if it is neither a circuit nor an attribution graph."""
    if path.is_dir():
        return Circuit.load(path)
    if not path.exists():
        raise ValueError(
            f"{path}: there is no such file or folder. Expected what `jaxcirc discover` or `jaxcirc graph` saved."
        )
    if path.suffix in (".safetensors", ".json"):
        # A circuit's own settings lie in its folder as JSON, too.
        if path.name == "circuit.json":
            return Circuit.load(path.parent)
        return AttributionGraph.load(path) if path.suffix == ".safetensors" else AttributionGraph.from_json(path)
    raise ValueError(
        f"{path} is neither a circuit's folder nor a graph's .safetensors or .json. Expected one of these."
    )


def _check(arguments: argparse.Namespace, saved: Circuit | AttributionGraph) -> None:
    """ValueError for options that do not go together, before anything is loaded."""
    given = lambda *names: [f"--{name}" for name in names if getattr(arguments, name.replace("-", "_")) is not None]
    of_circuit, of_graph = ("saes", "prompts"), ("transcoders", "cross-layer-transcoder")
    if isinstance(saved, Circuit):
        what, needed, others = "a circuit", ("model", *of_circuit), of_graph
    else:
        what, needed, others = "an attribution graph", ("model",), of_circuit
    if wrong := given(*others):
        raise ValueError(f"{wrong[0]} is not for {what}. Leave it out.")
    behind = given("model", *of_circuit, *of_graph)
    if isinstance(saved, Circuit) and given("tokenizer") and not behind:
        raise ValueError("--tokenizer is for attribution graphs; a circuit's file has its tokens. Leave it out.")
    if behind and arguments.out is not None:
        raise ValueError(f"{behind[0]} is for a page that is served, and --out writes one. Leave one of them out.")
    if behind and (missing := [f"--{name}" for name in needed if not given(name)]):
        raise ValueError(
            f"{behind[0]} without {missing[0]}: to move nodes of {what} takes both. Give {missing[0]}, too."
        )


def _described(arguments: argparse.Namespace, saved: Circuit | AttributionGraph) -> Description:
    if isinstance(saved, Circuit):
        return saved.described()
    return saved.described(tokens=None if arguments.tokenizer is None else load_text_tokenizer(arguments.tokenizer))


def _live(arguments: argparse.Namespace, saved: Circuit | AttributionGraph) -> Live:
    """Loads the model, and makes what moves a node in it."""
    if isinstance(saved, Circuit):
        model, saes, prompts, _ = load_given(arguments)
        given = (prompts.clean, prompts.corrupt, prompts.metric())
        trial = Trial(saved, model, saes, *given, mask=prompts.mask, batch_size=arguments.batch_size, verb="view")
        return Live(OF_CIRCUIT, 1.0, ft.partial(_moved_in_circuit, trial))
    transcoders = load_dictionaries(arguments)
    model = load_model(arguments)
    names = names_of(saved.table)
    move = lambda node, strength: _moved_in_graph(saved, model, transcoders, names, node, strength)
    return Live(OF_GRAPH, 0.0, move)


def _moved_in_circuit(trial: Trial, node: str, strength: float) -> list[Moved]:
    row = trial.steer([node], strengths=[strength]).iloc[0]
    return [Moved(f"the metric, of {trial.batches.n} prompts", float(row["predicted"]), float(row["measured"]))]


def _moved_in_graph(
    graph: AttributionGraph, model: Any, transcoders: Any, names: list[str], node: str, strength: float
) -> list[Moved]:
    if node not in names:
        raise ValueError(f"The graph has no node {node!r}.")
    at, table = names.index(node), graph.table
    if table.kind[at] != LATENT:
        raise ValueError("Only latents of a graph can be moved, and neurons, where it has no dictionaries.")
    layer = int(table.layer[at])
    live = {"frozen": (), "live_from": layer + 1 if layer + 1 < model.n_layers else None}
    found = check_graph(graph, model, transcoders, [at], strengths=[strength], **live)
    most = found.sort_values("measured", key=abs, ascending=False).head(TARGETS)
    columns = (most[name].tolist() for name in ("target", "predicted", "measured"))
    return [Moved(names[target], predicted, measured) for target, predicted, measured in zip(*columns, strict=True)]
