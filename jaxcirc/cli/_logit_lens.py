"""`jaxcirc logit-lens`: what the residual stream of each layer would say if it were the last."""

import argparse
import functools as ft
from typing import Any

import numpy as np

from .._tokens import token_text
from ..components import logit_lens
from ._common import add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._edges import check_known_tokens, token_of
from ._options import whole_number
from ._results import add_top_option


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "logit-lens",
        help="what each layer would say if it were the last",
        description="Reads the residual stream before, between and behind the blocks with the final norm and the unembedding: the "
        "strongest tokens, and the logit of one token less that of another.",
        epilog="example: jaxcirc logit-lens --model tiny-gpt2 --prompt 'The teachers that the doctor likes' --answer ' are' --foil ' is'",
    )
    add_text_options(parser)
    parser.add_argument("--answer", metavar="TOKEN", help="whose logit is printed: one token's text, or its id (none)")
    parser.add_argument(
        "--foil", metavar="TOKEN", help="whose logit is subtracted (the mean logit of all tokens is, without)"
    )
    parser.add_argument(
        "--position",
        type=whole_number("--position"),
        default=-1,
        metavar="P",
        help="the position that is printed, from the end if negative (%(default)s)",
    )
    add_top_option(parser, "tokens", 5)
    parser.set_defaults(command=read)


def read(arguments: argparse.Namespace) -> int:
    if arguments.foil is not None and arguments.answer is None:
        raise ValueError("--foil is subtracted from an answer's logit. Give --answer, too.")
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    answer, foil = (token_of(tokenizer, f"--{name}", getattr(arguments, name)) for name in ("answer", "foil"))
    at = position_of("--position", arguments.position, len(tokens))
    model = load_model(arguments)
    check_known_tokens(model, {"--answer": answer, "--foil": foil})
    lens = logit_lens(model, tokens[None])
    ids, logits = (np.asarray(found)[0, :, at] for found in lens.top(arguments.top))
    of_answer = None if answer is None else np.asarray(lens.answers(answer, foils=foil))[0, :, at]
    text = ft.partial(token_text, tokenizer)
    rows: list[dict[str, Any]] = [
        {
            "depth": depth,
            "answer": None if of_answer is None else float(of_answer[depth]),
            "top": [(text(int(token)), float(logit)) for token, logit in zip(ids[depth], logits[depth], strict=True)],
        }
        for depth in range(model.n_layers + 1)
    ]
    token = text(int(tokens[at]))
    if arguments.json:
        say_json({"model": model.name, "position": at, "token": token, "rows": rows})
        return 0
    asked = (
        ""
        if answer is None
        else f"; logit of {text(answer)!r} less " + ("the mean of all" if foil is None else f"that of {text(foil)!r}")
    )
    print(f"{model.name} at {at} {token!r}{asked}\n")
    print(f"depth{'    logit' * (answer is not None)}  strongest")
    for row in reversed(rows):
        own = "" if row["answer"] is None else f"{row['answer']:+z9.3f}"
        print(f"{row['depth']:>5}{own}  " + "  ".join(f"{word!r} {logit:z.2f}" for word, logit in row["top"]))
    return 0


def position_of(option: str, at: int, length: int) -> int:
    """Where a position that an option names is, counted from the beginning. **Raises:** `ValueError` if the prompt is not so long."""
    if not -length <= at < length:
        raise ValueError(f"{option} is {at}, and the prompt has {length} tokens.")
    return at % length
