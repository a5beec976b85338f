"""`jaxcirc circuit-stability`: how much a circuit depends on the prompts that it was found on."""

import argparse
from typing import TYPE_CHECKING

import numpy as np

from .._words import counted
from ..graph import component_graph, ComponentGraph
from ..localisation import Stability, stability
from ._attributed import add_attribution_options, benchmark_scores, STEPS
from ._common import (
    add_ioi_option,
    add_prompt_options,
    check_prompts_or_ioi,
    load_model,
    prompts_or_ioi,
    say_json,
    Subparsers,
    tokenizer_of,
)
from ._localised import add_how_option, RANKINGS
from ._options import count, share
from ._results import add_top_option
from ._tables import add_table_option, records, save_table


if TYPE_CHECKING:
    import pandas as pd

SIGNS = {1: "+", 0: "?", -1: "-"}


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "circuit-stability",
        help="whether other prompts of the same kind would give the same circuit",
        description="Scores every edge between the components of a model on each prompt, by attribution with integrated gradients, "
        "and draws as many of the prompts with replacement, time after time (the bootstrap). The best edges of each sample are a circuit, "
        "and these are compared.",
        epilog="example: jaxcirc circuit-stability --model tiny-gpt2 --ioi 16 --keep 0.05",
    )
    add_prompt_options(parser, dictionaries=False, required=False, batches=False)
    add_ioi_option(parser)
    parser.add_argument(
        "--keep",
        type=share("--keep", "edges"),
        default=0.05,
        metavar="X",
        help="the share of edges that is kept, in each circuit (%(default)s)",
    )
    add_attribution_options(parser)
    parser.add_argument(
        "--ranking",
        choices=RANKINGS,
        default="signed",
        help="rank edges by the score, so that those that hurt are left out, or by its size (%(default)s)",
    )
    add_how_option(parser)
    parser.add_argument(
        "--draws",
        type=count("--draws", "samples of the prompts", least=2),
        default=100,
        metavar="N",
        help="how many samples of the prompts are drawn, a circuit found on each (%(default)s)",
    )
    add_table_option(parser, "edges")
    add_top_option(parser, "edges", 20)
    parser.set_defaults(command=compare)


def compare(arguments: argparse.Namespace) -> int:
    check_prompts_or_ioi(arguments)
    prompts = prompts_or_ioi(arguments, tokenizer_of(arguments))
    if len(prompts) < 2:
        raise ValueError("Samples are drawn from two prompts or more, and there is one. Give more.")
    model = load_model(arguments)
    graph = component_graph(model, embeddings="tokens", shared="each")
    if not (edges := int(arguments.keep * graph.n_edges)):
        raise ValueError(f"--keep {arguments.keep:g} is no edge of the {graph.n_edges} of {model.name}. Ask for more.")
    scores = benchmark_scores(arguments, model, prompts, graph)
    chosen = {"by": arguments.ranking, "how": arguments.how, "draws": arguments.draws, "seed": arguments.seed}
    found = stability(graph, scores, arguments.keep, **chosen)
    table = _table(graph, found, scores.mean(0))
    save_table(table, arguments.out)
    low, high = np.quantile(found.jaccard, (0.05, 0.95)).tolist()
    always = int((found.always & graph.edges).sum())
    if arguments.json:
        say_json(
            {
                "model": model.name,
                "prompts": len(prompts),
                "edges": graph.n_edges,
                "circuit": edges,
                "steps": arguments.steps or STEPS,
                "derivatives": arguments.derivatives or "exact",
                "ranking": arguments.ranking,
                "how": arguments.how,
                "draws": arguments.draws,
                "mean": found.mean,
                "jaccard": {"0.05": low, "0.95": high},
                "always": always,
                "rows": records(table),
                "out": str(arguments.out) if arguments.out else None,
            }
        )
        return 0
    print(
        f"the best {edges} of {counted(graph.n_edges, 'edge')} of {model.name}, found anew on {arguments.draws} samples of "
        f"{counted(len(prompts), 'prompt')}"
    )
    print(
        f"two of these circuits share {found.mean:z.3f} of their edges on average, and {low:z.3f} to {high:z.3f} in 90 of 100 pairs"
    )
    print(f"{counted(always, 'edge')} in every circuit, {counted(len(table), 'edge')} in some")
    print("\nin how many circuits, and the sign of the score (? where samples differ)\n")
    for row in table.head(arguments.top).to_dict("records"):
        print(f"  {row['frequency']:>6.1%}  {SIGNS[row['sign']]}  {row['sender']:<8} -> {row['receiver']}")
    print(
        "\nshared: edges in both circuits as a share of those in either (the Jaccard index); 0.8 is proposed as the least to report"
    )
    if arguments.out:
        print(f"\nwritten to {arguments.out}.")
    return 0


def _table(graph: ComponentGraph, found: Stability, scores: np.ndarray) -> "pd.DataFrame":
    """Makes a row an edge that is in some circuit, those in most first, of these the strongest."""
    import pandas as pd

    s, r = np.nonzero(found.frequency)
    columns = {
        "sender": [graph.senders[i] for i in s],
        "receiver": [graph.receivers[i] for i in r],
        "frequency": found.frequency[s, r],
        "sign": found.sign[s, r],
        "score": scores[s, r],
    }
    order = np.lexsort((-np.abs(scores[s, r]), -found.frequency[s, r]))
    return pd.DataFrame(columns).iloc[order].reset_index(drop=True)
