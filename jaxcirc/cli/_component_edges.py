"""`jaxcirc component-edges`: which edges between heads and MLPs carry a behaviour."""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from .._words import counted
from ..data import Prompts
from ..graph import component_graph, ComponentGraph
from ..localisation import benchmark_graph, EdgeScores, save_scores
from ..localisation._score_files import SUFFIXES
from ..models import Transformer
from ..patching import exact_edges, greedy_search, patch_edges, train_masks
from ._attributed import add_attribution_options, attributed
from ._common import (
    add_ioi_option,
    add_prompt_options,
    check_prompts_or_ioi,
    load_model,
    progress_bar,
    prompts_or_ioi,
    say_json,
    Subparsers,
    tokenizer_of,
)
from ._options import count, new_file, share, threshold
from ._results import add_top_option


# What each method's numbers are, and the options that are its alone.
WORDS = {
    "attribution": "effect on the metric of an edge that alone is as on the corrupt prompt, estimated",
    "exact": "effect on the metric of an edge that alone is as on the corrupt prompt",
    "greedy": "change of the metric without the edge, when it was tried",
    "masks": "probability that the edge is kept",
}
OF = {"steps": "attribution", "derivatives": "attribution", "threshold": "greedy", "keep": "masks", "updates": "masks"}


class Found(NamedTuple):
    """A number for every edge, and of methods that find a circuit its edges."""

    scores: Float[np.ndarray, "sender receiver"]
    kept: Bool[np.ndarray, "sender receiver"] | None


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "component-edges",
        help="which edges between heads and MLPs carry it: estimated, measured, or a circuit of them",
        description="Edges from each head and MLP to each query, key, value and MLP that reads the residual stream further on: what each "
        "does to the metric, or which of them are enough, with all others as on the corrupt prompt.",
        epilog="example: jaxcirc component-edges --model tiny-gpt2 --ioi 4 --method greedy --threshold 0.1",
    )
    add_prompt_options(parser, dictionaries=False, required=False, batches=False)
    add_ioi_option(parser)
    parser.add_argument(
        "--method",
        choices=tuple(WORDS),
        default="attribution",
        help="how edges are found. attribution: by gradients. exact: a run for each edge. greedy: edges are taken out one by one, as "
        "ACDC does. masks: a gate on each is trained; takes optax (%(default)s)",
    )
    add_attribution_options(parser, of=", of --method attribution")
    parser.add_argument(
        "--threshold",
        type=threshold("--threshold"),
        metavar="X",
        help="how much an edge may change the metric and yet be taken out, of --method greedy",
    )
    parser.add_argument(
        "--keep",
        type=share("--keep", "edges"),
        metavar="X",
        help="the share of edges that is kept, of --method masks (0.1)",
    )
    parser.add_argument(
        "--updates",
        type=count("--updates", "updates train the masks"),
        metavar="N",
        help="how many updates train the masks, of --method masks (300)",
    )
    parser.add_argument(
        "--out",
        type=new_file("--out", *SUFFIXES),
        metavar="FILE",
        help="file for the scores of edges, as the benchmark's .json or .pt, which circuit-curve reads",
    )
    add_top_option(parser, "edges", 20)
    parser.set_defaults(command=find)


def find(arguments: argparse.Namespace) -> int:
    check_prompts_or_ioi(arguments)
    _check(arguments)
    prompts = prompts_or_ioi(arguments, tokenizer_of(arguments))
    model = load_model(arguments)
    if arguments.out:
        benchmark_graph(model)  # whether these files have a form for the model shows before the work
    graph = component_graph(model, embeddings="tokens", shared="each")
    found = METHODS[arguments.method](arguments, model, prompts, graph)
    every, kept = np.asarray(graph.edges), found.kept
    masks = np.stack([every, np.zeros_like(every), *([] if kept is None else [kept])])
    pairs = model, prompts.clean, prompts.corrupt, prompts.metric()
    full, empty, *circuit = np.asarray(patch_edges(*pairs, masks, graph=graph, mask=prompts.mask)).mean(-1).tolist()
    if arguments.out:
        scores = found.scores if arguments.method == "masks" else -found.scores  # in files above 0 for edges that help
        save_scores(EdgeScores.of(model, scores, kept=kept), arguments.out)
    rows = _rows(graph, found)
    facts = {
        "model": model.name,
        "method": arguments.method,
        "derivatives": arguments.derivatives or "exact" if arguments.method == "attribution" else None,
        "prompts": len(prompts),
        "edges": graph.n_edges,
        "full": full,
        "empty": empty,
        "kept": None if kept is None else int(kept.sum()),
        "circuit": circuit[0] if circuit else None,
        "out": str(arguments.out) if arguments.out else None,
    }
    if arguments.json:
        say_json({**facts, "rows": rows})
    else:
        _show(arguments, facts, rows)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for option, method in OF.items():
        if getattr(arguments, option) is not None and arguments.method != method:
            raise ValueError(f"--{option} is of --method {method}. Leave it out.")
    if arguments.method == "greedy" and arguments.threshold is None:
        raise ValueError(
            "--method greedy takes --threshold: how much an edge may change the metric and yet be taken out."
        )


Method = Callable[[argparse.Namespace, Transformer, Prompts, ComponentGraph], Found]


def _attributed(arguments: argparse.Namespace, model: Transformer, prompts: Prompts, graph: ComponentGraph) -> Found:
    effects = attributed(arguments, model, prompts, graph, rule="midpoint", start="clean")
    return Found(np.asarray(effects, np.float64).mean(0), None)


def _exact(arguments: argparse.Namespace, model: Transformer, prompts: Prompts, graph: ComponentGraph) -> Found:
    pairs = model, prompts.clean, prompts.corrupt, prompts.metric()
    return Found(np.asarray(exact_edges(*pairs, graph=graph, mask=prompts.mask), np.float64).mean(0), None)


def _greedy(arguments: argparse.Namespace, model: Transformer, prompts: Prompts, graph: ComponentGraph) -> Found:
    given = {"threshold": arguments.threshold, "absolute": True, "graph": graph, "mask": prompts.mask}
    with progress_bar() as progress:
        found = greedy_search(model, prompts.clean, prompts.corrupt, prompts.metric(), progress=progress, **given)
    scores = np.zeros(found.kept.shape)
    for step in found.steps:
        scores[step.edge] = step.without - step.before
    return Found(scores, found.kept)


def _trained(arguments: argparse.Namespace, model: Transformer, prompts: Prompts, graph: ComponentGraph) -> Found:
    given = {"share": arguments.keep or 0.1, "steps": arguments.updates or 300, "key": jax.random.key(arguments.seed)}
    with progress_bar() as progress:
        found = train_masks(
            model,
            prompts.clean,
            prompts.corrupt,
            prompts.metric(),
            graph=graph,
            mask=prompts.mask,
            progress=progress,
            **given,
        )
    return Found(np.asarray(found.scores, np.float64), np.asarray(found.kept))


METHODS: dict[str, Method] = {"attribution": _attributed, "exact": _exact, "greedy": _greedy, "masks": _trained}


def _rows(graph: ComponentGraph, found: Found) -> list[dict[str, Any]]:
    """Makes a row an edge, or an edge that is kept, the largest number first."""
    wanted = np.argwhere(np.asarray(graph.edges) if found.kept is None else found.kept)
    rows = [
        {"sender": graph.senders[s], "receiver": graph.receivers[r], "score": float(found.scores[s, r])}
        for s, r in wanted.tolist()
    ]
    return sorted(rows, key=lambda row: -abs(row["score"]))


def _show(arguments: argparse.Namespace, facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    full, empty = facts["full"], facts["empty"]
    print(
        f"{counted(facts['edges'], 'edge')} of {facts['model']}, {counted(facts['prompts'], 'prompt')}; metric {full:z.3f}, without any "
        f"edge {empty:z.3f}"
    )
    if facts["kept"] is not None:
        share = "" if full == empty else f", {(facts['circuit'] - empty) / (full - empty):z.1%} of the way"
        print(f"with the {counted(facts['kept'], 'edge')} kept alone {facts['circuit']:z.3f}{share}")
    print(f"\n{WORDS[arguments.method]}\n")
    for row in rows[: arguments.top]:
        print(f"  {row['score']:+z9.4f}  {row['sender']:<8} -> {row['receiver']}")
    if arguments.out:
        print(f"\nscores written to {arguments.out}.")
