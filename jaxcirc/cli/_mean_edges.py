"""`jaxcirc mean-edges`: the mean edges between the latents of two dictionaries, over a file of texts."""

import argparse
from typing import Any

import numpy as np

from .._sites import Site
from .._words import counted
from ..features import mean_edges
from ..features._mean_path import THROUGH
from ..features._mean_result import FORMAT
from ..interop import check_saes, load_saes
from ._common import load_model, progress_bar, say_json, Subparsers, tokenizer_of
from ._corpus import add_corpus_options, check_place, texts_of, weighed_texts
from ._frozen import held, SAID
from ._options import count, new_file, site
from ._results import add_top_option
from ._tables import save_table


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "mean-edges",
        help="mean edges between the latents of two dictionaries, over a file of texts",
        description="Computes, for every latent of one dictionary and every latent of a later one, the derivative of the second by the "
        "first at the same position, averaged over all positions of a file of texts; keeps the largest into each latent, and "
        "measures the error.",
        epilog="example: jaxcirc mean-edges --model tiny-gpt2 --saes tiny-gpt2 --prompts texts.txt --source blocks.0.hook_mlp_out "
        "--target blocks.1.hook_resid_post --through stream --weighted --out edges.csv",
    )
    add_corpus_options(parser)
    parser.add_argument(
        "--saes", metavar="DICTIONARIES", required=True, help="a shipped model's name, or a folder of dictionaries"
    )
    parser.add_argument(
        "--source", required=True, type=site("--source"), metavar="SITE", help="such as blocks.0.hook_mlp_out"
    )
    parser.add_argument(
        "--target", required=True, type=site("--target"), metavar="SITE", help="such as blocks.1.hook_resid_post"
    )
    parser.add_argument(
        "--through",
        choices=THROUGH,
        default="mlp",
        help="mlp: from what an MLP reads to what it adds. stream: along the residual stream alone (%(default)s)",
    )
    parser.add_argument(
        "--weighted",
        action="store_true",
        help="each derivative times the source's activation, which is what it contributes",
    )
    parser.add_argument(
        "--latents",
        nargs="+",
        type=count("--latents", "latents are before it", least=0),
        metavar="N",
        help="only edges into these latents of the target, by their numbers (all)",
    )
    parser.add_argument(
        "--freeze", nargs="+", default=[], metavar="WHAT", help=f"what is held: {SAID}; or any sites (nothing)"
    )
    parser.add_argument(
        "--per-target",
        type=count("--per-target", "edges are kept into each latent"),
        default=8,
        metavar="N",
        help="edges that are kept into each latent of the target, the largest (%(default)s)",
    )
    add_top_option(parser, "edges", 12)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=new_file("--out", ".csv", ".safetensors"),
        help="file for the edges: .csv for a table of those that are kept, .safetensors for all of them",
    )
    parser.set_defaults(command=edges)


def edges(arguments: argparse.Namespace) -> int:
    whole = _is_whole(arguments)
    check_saes(arguments.saes)
    tokenizer = tokenizer_of(arguments)
    texts = texts_of(arguments, tokenizer)
    saes = load_saes(arguments.saes)
    for option in ("source", "target"):
        place = Site.parse(getattr(arguments, option))
        if place not in saes:
            there = ", ".join(f"`{each}`" for each in saes)
            raise ValueError(f"--{option}: there is no dictionary at `{place}`. There are at: {there}.")
    model = load_model(arguments)
    corpus = weighed_texts(arguments, model, texts)
    with progress_bar() as progress:
        found = mean_edges(
            model,
            saes,
            corpus,
            arguments.source,
            arguments.target,
            through=arguments.through,
            weighted=arguments.weighted,
            targets=arguments.latents,
            frozen=held(arguments.freeze, model),
            progress=progress,
        )
    table = found.top(arguments.per_target).to_pandas()
    table = table.iloc[np.argsort(-np.abs(table["value"].to_numpy()), kind="stable")]
    certificate = found.save(arguments.out) if whole else found.certificate() if len(table) else None
    if arguments.out and not whole:
        save_table(table, arguments.out)
    first = table.head(arguments.top)
    facts: dict[str, Any] = {
        "model": model.name,
        "source": str(found.source),
        "target": str(found.target),
        "through": found.through,
        "frozen": list(found.frozen),
        "weighted": found.weighted,
        "positions": found.n_positions,
        "texts": found.n_prompts,
        "kept": len(table),
        "certificate": None if certificate is None else certificate.as_dict(),
        "rows": first.to_dict("records"),
        "out": str(arguments.out) if arguments.out else None,
    }
    if arguments.json:
        say_json(facts)
        return 0
    what = "what latents contribute" if found.weighted else "derivatives of latents"
    print(
        f"{what}, mean over {counted(found.n_positions, 'position')} of {counted(found.n_prompts, 'text')}: {found.target} by "
        f"{found.source} of {model.name}, {_by_way(found.through)}"
    )
    print(
        f"{counted(len(found.targets), 'latent')} by {len(found.W_dec)}; {counted(len(table), 'edge')} kept, up to {arguments.per_target} "
        "into each\n"
    )
    for source, target, value in zip(first["source"], first["target"], first["value"], strict=True):
        print(f"  {value:+z10.5f}  {found.source}/{source:<8} -> {found.target}/{target}")
    if certificate is None:
        print("all edges are 0: no latent of the target was on, or with --weighted none of the source beside it")
    else:
        print(f"\ncertificate: {certificate}")
    if arguments.out:
        print(f"saved to {arguments.out}{': all edges' if whole else ': a row for each edge that is kept'}.")
    return 0


def _by_way(through: str) -> str:
    return "through the MLP" if through == "mlp" else "along the residual stream"


def _is_whole(arguments: argparse.Namespace) -> bool:
    """Whether all edges are written. **Raises:** `ValueError` for a file that holds others."""
    whole = arguments.out is not None and arguments.out.suffix == ".safetensors"
    if whole:
        check_place(arguments.out, FORMAT, "mean edges")
    return whole
