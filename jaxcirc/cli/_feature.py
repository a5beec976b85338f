"""`jaxcirc feature`: the page of one latent."""

import argparse
from pathlib import Path

from .._sites import Site
from .._words import counted
from ..data import load_texts
from ..interop import check_saes, load_saes
from ..view import feature, FeaturePage
from ._common import add_bos_option, load_model, progress_bar, say_json, Subparsers, tokenizer_of
from ._corpus import TEXTS_HELP
from ._loading import add_model_option, add_tokenizer_options
from ._options import count, existing_file, page, site


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "feature",
        help="the page of one latent",
        description="Looks at one latent over texts: where it is strongest, how often it is on, what it does to the logits by itself, "
        "and which others write alike; writes a page to open in a browser.",
        epilog="example: jaxcirc feature --model tiny-gpt2 --saes tiny-gpt2 --site blocks.1.hook_mlp_out --unit 196 --prompts texts.txt "
        "--out latent.html",
    )
    add_model_option(parser)
    parser.add_argument(
        "--saes", metavar="DICTIONARIES", required=True, help="a shipped model's name, or a folder of dictionaries"
    )
    parser.add_argument(
        "--site",
        required=True,
        type=site("--site"),
        metavar="SITE",
        help="such as blocks.1.hook_mlp_out",
    )
    parser.add_argument(
        "--unit",
        required=True,
        type=count("--unit", "latents are before it", least=0),
        metavar="N",
        help="number of the latent or neuron",
    )
    parser.add_argument(
        "--prompts",
        required=True,
        type=existing_file("--prompts"),
        metavar="FILE",
        help=TEXTS_HELP,
    )
    parser.add_argument("--limit", type=count("--limit", "texts to use"), metavar="N", help="use the first N texts")
    parser.add_argument(
        "--top",
        type=count("--top", "are listed"),
        default=10,
        metavar="N",
        help="how many examples, tokens and latents to print (%(default)s)",
    )
    parser.add_argument(
        "--out",
        type=page("--out"),
        default=Path("feature.html"),
        metavar="FILE",
        help="file for the page (%(default)s)",
    )
    add_tokenizer_options(parser)
    add_bos_option(parser, "before each text (texts of a file are taken as the model's family is used to)")
    parser.set_defaults(command=feature_page)


def feature_page(arguments: argparse.Namespace) -> int:
    check_saes(arguments.saes)
    tokenizer = tokenizer_of(arguments)
    saes, place = load_saes(arguments.saes), Site.parse(arguments.site)
    if place not in saes:
        there = ", ".join(f"`{each}`" for each in saes)
        raise ValueError(f"--site: there is no dictionary at `{place}`. There are at: {there}.")
    sae = saes[place]
    if arguments.unit >= sae.d_sae:
        raise ValueError(f"--unit: the units at `{place}` are 0 to {sae.d_sae - 1}; got {arguments.unit}.")
    texts = load_texts(arguments.prompts, tokenizer, limit=arguments.limit, bos=arguments.bos)
    model = load_model(arguments)
    long = sum(len(text) > model.n_ctx for text in texts)
    if long:
        raise ValueError(
            f"{arguments.prompts}: {counted(long, 'text')} of {len(texts)} have more than {model.n_ctx} tokens, the context of "
            f"{model.name}. "
            "Cut them into shorter lines."
        )
    with progress_bar() as progress:
        found = feature(
            *(sae, arguments.unit, texts), model=model, tokenizer=tokenizer, most=arguments.top, progress=progress
        )
    found.to_html(arguments.out)
    if arguments.json:
        say_json({**_summary(found), "out": str(arguments.out)})
        return 0
    print(f"latent {found.unit} at {found.site}: on at {found.share_active:.3%} of {counted(found.n_tokens, 'token')}")
    for example, pieces in list(zip(found.examples, found.pieces, strict=True))[:3]:
        words = "".join(text for _, text in pieces)
        print(f"  {example.acts[example.position]:z8.3f}  {words!r}")
    print(f"\nwritten to {arguments.out}: open it in a browser.")
    return 0


def _summary(found: FeaturePage) -> dict:
    return {
        "site": str(found.site),
        "unit": found.unit,
        "texts": found.n_prompts,
        "tokens": found.n_tokens,
        "active": len(found.active),
        "examples": [
            {"tokens": each.tokens.tolist(), "acts": each.acts.astype(float).tolist()} for each in found.examples
        ],
        "logits": found.logits.to_dict("records"),
        "neighbours": found.neighbours.to_dict("records"),
    }
