"""`jaxcirc qk-attribution`: which pairs of nodes make a head attend from one position to another."""

import argparse
from typing import Any, TYPE_CHECKING

import numpy as np

from .._run import run
from .._sites import Kind, Site
from .._tokens import token_texts
from .._words import counted
from ..attribution_graphs import qk_attribution, QKAttribution
from ._common import add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._explain_edge import show_pairs
from ._loading import check_heads
from ._logit_lens import position_of
from ._options import head, whole_number
from ._results import add_top_option
from ._saved_graph import add_dictionaries, check_dictionaries_there, load_dictionaries, names_of
from ._tables import add_table_option, save_table


if TYPE_CHECKING:
    import pandas as pd


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "qk-attribution",
        help="which pairs of nodes make a head attend",
        description="Splits the attention score of a head, between two positions of a prompt, into pairs of nodes, one in the query and "
        "one in the key: latents of transcoders (neurons, without any), tokens, biases and errors. The pairs sum to the score.",
        epilog="example: jaxcirc qk-attribution --model tiny-gpt2 --prompt 'The teachers that the doctor likes' --head 3.0",
    )
    add_text_options(parser)
    add_dictionaries(parser)
    parser.add_argument(
        "--head",
        nargs="+",
        required=True,
        type=head("--head"),
        metavar="L.H",
        help="whose scores are split, such as 3.0",
    )
    parser.add_argument(
        "--query",
        type=whole_number("--query"),
        default=-1,
        metavar="P",
        help="the position that attends, from the end if negative (%(default)s)",
    )
    parser.add_argument(
        "--key",
        type=whole_number("--key"),
        metavar="P",
        help="the position that is attended to, from the end if negative (where the head attends most)",
    )
    add_top_option(parser, "pairs of nodes", 12)
    add_table_option(parser, "pairs")
    parser.set_defaults(command=attribute)


def attribute(arguments: argparse.Namespace) -> int:
    check_dictionaries_there(arguments)
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    query = position_of("--query", arguments.query, len(tokens))
    key = None if arguments.key is None else position_of("--key", arguments.key, len(tokens))
    if key is not None and query < key:
        raise ValueError(
            f"--key {arguments.key} comes behind --query {arguments.query}, and no query attends to what comes. Choose an earlier one."
        )
    transcoders = load_dictionaries(arguments)
    model = load_model(arguments)
    check_heads(model, arguments.head)
    patterns = {layer: Site(layer, Kind.PATTERN) for layer, _ in arguments.head}
    _, cache = run(model, tokens, record=list(patterns.values()))
    texts = token_texts(tokenizer, np.asarray(tokens))
    rows, tables = [], []
    for layer, number in arguments.head:
        pattern = np.asarray(cache[patterns[layer]][number, query])
        at = int(pattern.argmax()) if key is None else key
        found = qk_attribution(model, transcoders, tokens, layer, number, query, at, pairs=arguments.top)
        rows.append(_as_json(found, float(pattern[at])))
        tables.append(_table(found))
        if not arguments.json:
            print(
                f"head {layer}.{number} of {model.name} attends from {query} {texts[query]!r} to {at} {texts[at]!r} with "
                f"{pattern[at]:z.1%}; score {found.score:+z.4f}"
            )
            print("\nsums by kind, query's down and key's across")
            print(found.by_kind().to_string(float_format="{:+z.3f}".format))
            print(f"\n{counted(len(found.values), 'pair')} of most size")
            show_pairs(found, texts)
            print()
    if arguments.out:
        import pandas as pd

        save_table(pd.concat(tables, ignore_index=True), arguments.out)
    if arguments.json:
        out = str(arguments.out) if arguments.out else None
        say_json({"model": model.name, "tokens": texts, "rows": rows, "out": out})
    elif arguments.out:
        print(f"written to {arguments.out}.")
    return 0


def _as_json(found: QKAttribution, attends: float) -> dict[str, Any]:
    names = names_of(found.records)
    return {
        "head": f"{found.layer}.{found.head}",
        "query": found.query,
        "key": found.key,
        "attends": attends,
        "score": found.score,
        "by_kind": {row: {name: float(x) for name, x in sums.items()} for row, sums in found.by_kind().iterrows()},
        "pairs": [
            {"value": float(value), "query": names[query], "key": names[key]}
            for value, (query, key) in zip(found.values, found.pairs.tolist(), strict=True)
        ],
    }


def _table(found: QKAttribution) -> "pd.DataFrame":
    table, names = found.table(), names_of(found.records)
    where = (found.layer, found.head, found.query, found.key)
    for at, (name, value) in enumerate(zip(("layer", "head", "query", "key"), where, strict=True)):
        table.insert(at, name, value)
    for side in ("query", "key"):
        table[f"{side}_node"] = [names[node] for node in table[f"{side}_node"]]
    return table
