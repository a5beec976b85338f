"""`jaxcirc edges`: what feeds one node of a prompt's run, or what it feeds."""

import argparse
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._metrics import LogitDiff
from .._run import check_token_ids, run
from .._tokens import token_text, token_texts
from .._words import counted
from ..edges import edges_into, edges_out_of
from ..interop import check_saes, load_saes
from ..models import Transformer
from ..nodes import FORMS, parse_node
from ._common import add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._frozen import HELD, held, SAID
from ._results import add_top_option


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "edges",
        help="what feeds one node of a prompt's run, or what it feeds",
        description="The strongest direct edges into a node from heads, neurons, tokens, biases and latents, or out of it: how much of the "
        "metric's linear effect of the one passes through the other next. The metric is the logit of --answer, less that of --foil.",
        epilog="example: jaxcirc edges --model tiny-gpt2 --prompt 'The teachers that the doctor likes' --answer ' are' --foil ' is' "
        "--node 'neuron 2 -1 400'",
    )
    add_text_options(parser)
    parser.add_argument("--node", required=True, metavar="NODE", help=f"one of: {', '.join(FORMS.values())}")
    parser.add_argument(
        "--side",
        choices=("into", "out"),
        help="edges into the node or out of it (into; out of a token, position, bias or error)",
    )
    parser.add_argument("--answer", metavar="TOKEN", help="whose logit: one token's text, or its id (the likeliest)")
    parser.add_argument("--foil", metavar="TOKEN", help="whose logit is subtracted (none)")
    parser.add_argument(
        "--saes",
        metavar="DICTIONARIES",
        help="a shipped model's name, or a folder of dictionaries, whose latents are nodes",
    )
    parser.add_argument(
        "--freeze",
        nargs="+",
        choices=tuple(HELD),
        default=["layer_norms"],
        metavar="WHAT",
        help=f"what is held: {SAID} (layer_norms)",
    )
    add_top_option(parser, "edges", 20)
    parser.set_defaults(command=edges)


def edges(arguments: argparse.Namespace) -> int:
    if arguments.saes:
        check_saes(arguments.saes)
    tokens = tokens_of(arguments)
    node = parse_node(arguments.node, len(tokens))
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    answer, foil = (token_of(tokenizer, f"--{name}", getattr(arguments, name)) for name in ("answer", "foil"))
    model = load_model(arguments)
    check_known_tokens(model, {"--answer": answer, "--foil": foil})
    answer = likeliest(model, tokens) if answer is None else answer
    out = (arguments.side or _usual(arguments.node)) == "out"
    saes, frozen = load_saes(arguments.saes) if arguments.saes else {}, held(arguments.freeze, model)
    found = (edges_out_of if out else edges_into)(
        model, tokens, LogitDiff(answer, foil), node, saes=saes, frozen=frozen
    )
    table = found.table(arguments.top)
    texts = [_text(tokenizer, int(token)) for token in np.asarray(tokens)]
    metric = metric_text(tokenizer, answer, foil)
    facts = {
        "model": model.name,
        "node": arguments.node,
        "side": "out" if out else "into",
        "metric": metric,
        "frozen": arguments.freeze,
        "activation": float(found.activation),
        "derivative": float(found.derivative),
        "sum": float(found.total),
    }
    rows = [{key: value for key, value in row.items() if value == value} for row in table.to_dict("records")]
    if arguments.json:
        say_json({**facts, "tokens": texts, "edges": rows})
        return 0
    print(
        f"{counted(len(rows), 'edge')} {'out of' if out else 'into'} {arguments.node} of {model.name}; logit of {metric}"
    )
    print(
        f"activation {facts['activation']:z.4g}, the metric's derivative by it {facts['derivative']:z.4g}; "
        f"all edges sum to {facts['sum']:+z.4g}"
    )
    print(f"held: {', '.join(arguments.freeze)}\n")
    for row in rows:
        print(f"  {row['edge']:+z10.5f}  {row['node']:<34} {_where(row, texts)}")
    return 0


def likeliest(model: Transformer, tokens: Any) -> int:
    """The token with the largest logit behind the prompt."""
    return int(jnp.argmax(run(model, tokens)[0][-1]))


def _usual(node: str) -> str:
    return "out" if node.split()[0] in ("token", "position", "bias", "error") else "into"


def token_of(tokenizer: Any, option: str, text: str | None) -> int | None:
    """The id of one token. **Raises:** `ValueError` for a text of several."""
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    if tokenizer is None:
        raise ValueError(f"{option}: with --tokens there is no tokenizer to read {text!r}. Give the token's id.")
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        parts = ", ".join(map(repr, token_texts(tokenizer, ids)))
        raise ValueError(
            f"{option} takes one token, and {text!r} is {len(ids)}: {parts}. Mind the space in front of a word."
        )
    return int(ids[0])


def check_known_tokens(model: Transformer, tokens: Mapping[str, int | None]) -> None:
    """ValueError for a token, by its option, that the model has no logit of."""
    for option, token in tokens.items():
        if token is not None:
            check_token_ids(model, np.asarray(token), len(model.b_U), name=option)


def metric_text(tokenizer: Any, answer: int, foil: int | None) -> str:
    """Whose logit it is, less whose: `' are' less ' is'`."""
    return _text(tokenizer, answer) + ("" if foil is None else f" less {_text(tokenizer, foil)}")


def _text(tokenizer: Any, token: int) -> str:
    return str(int(token)) if tokenizer is None else repr(token_text(tokenizer, token))


def _where(row: dict[str, Any], texts: list[str]) -> str:
    """The tokens that an edge is at."""
    places = [int(row[name]) for name in ("pos", "key") if row.get(name) is not None]
    return " from ".join(texts[place] for place in places)
