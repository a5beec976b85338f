"""`jaxcirc lens fit | show | merge | convert`: the Jacobian lens."""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from .._figures import COLOURED_BY
from .._words import counted
from ..data._texts import load_texts
from ..jacobian._rules import RULES
from ..lens import fit_lens, JacobianLens
from ..lens._fit import AVERAGES
from ..lens._store import check_suffix
from ..models import Transformer
from ._common import (
    add_bos_option,
    add_text_options,
    load_model,
    note,
    progress_bar,
    say_json,
    Subparsers,
    tokenizer_of,
    tokens_of,
)
from ._edges import token_of
from ._logit_lens import position_of
from ._options import count, existing_file, figure, new_file, part_of, threshold, whole_number
from ._results import add_top_option


COMPARED = 20  # prompts on which a fitted lens is compared with the logit lens


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "lens",
        help="the Jacobian lens: fit, show, merge, convert",
        description="The Jacobian lens carries the residual stream of each layer to the last by the mean Jacobian, and reads it there.",
        epilog="example: jaxcirc lens fit --model tiny-gpt2 --prompts texts.txt --out lens.safetensors",
    )
    parts = parser.add_subparsers(metavar="PART", required=True)
    _add_fit(parts)
    _add_show(parts)
    _add_merge(parts)
    _add_convert(parts)


def _add_fit(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "fit",
        help="fit a lens to a file of texts",
        description="Fits the mean Jacobian of each layer to a corpus, on all devices of this process. Stopped at any moment, it goes on "
        "where it was.",
        epilog="example: jaxcirc lens fit --model tiny-gpt2 --prompts texts.txt --limit 100 --out lens.safetensors",
    )
    parser.add_argument(
        "--model", metavar="MODEL", required=True, help="a shipped model, a Hugging Face folder, or a Hub id"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        type=existing_file("--prompts"),
        help="file of texts: .txt with one a line, or a table with a column text, JSON lines, JSON, CSV, TSV or parquet",
    )
    parser.add_argument("--tokenizer", metavar="TOKENIZER", help="where the tokenizer is, if not with the model")
    parser.add_argument("--revision", metavar="NAME", help="which revision of a Hub model")
    add_bos_option(parser, "before each text (it is put where the model's tokenizer puts it by itself)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        type=_lens_file("--out"),
        help="file for the lens: .safetensors, or .pt as it is published",
    )
    parser.add_argument(
        "--checkpoint",
        type=_lens_file("--checkpoint"),
        metavar="FILE",
        help="where the fit is kept on the way, and taken up from; kept afterwards, to go on with more texts (a file beside --out, "
        "removed at the end)",
    )
    parser.add_argument(
        "--shard",
        type=part_of("--shard"),
        metavar="I/N",
        help="do every N-th text from the I-th on, counted from 0, beside other processes; `jaxcirc lens merge` makes one lens of theirs",
    )
    parser.add_argument("--limit", type=count("--limit", "texts to use"), metavar="N", help="use the first N texts")
    parser.add_argument(
        "--length",
        type=count("--length", "tokens of a text"),
        default=128,
        metavar="N",
        help="tokens of a text, of which longer ones are cut (%(default)s)",
    )
    parser.add_argument(
        "--skip-first",
        type=count("--skip-first", "positions to leave out", least=0),
        default=16,
        metavar="N",
        help="positions left out at the beginning of each text (%(default)s)",
    )
    parser.add_argument(
        "--target-layer",
        type=whole_number("--target-layer"),
        metavar="N",
        help="the layer that the maps lead to, counted from the end if negative (the last)",
    )
    parser.add_argument(
        "--rule",
        choices=RULES,
        default="exact",
        help="lrp: norm scales and patterns held, products halved. detached: gates held too (%(default)s)",
    )
    parser.add_argument(
        "--average", choices=AVERAGES, default="corpus", help="one mean, or one a cluster (%(default)s)"
    )
    parser.add_argument(
        "--clusters", type=count("--clusters", "clusters"), default=8, metavar="N", help="how many (%(default)s)"
    )
    for name, what in (
        ("error", "the standard error is this small beside the mean"),
        ("movement", "means move no more"),
    ):
        parser.add_argument(f"--stop-{name}", type=threshold(f"--stop-{name}"), metavar="X", help=f"stop when {what}")
    parser.add_argument(
        "--least", type=count("--least", "texts"), default=100, metavar="N", help="but not before N texts (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=fit)


def _add_show(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "show",
        help="read a prompt through a lens",
        description="What each layer would say of each position: the strongest tokens, and the rank of the token that follows, by the lens "
        "and by the logit lens.",
        epilog="example: jaxcirc lens show lens.safetensors --model tiny-gpt2 --prompt 'The teachers that the doctor likes are' "
        "--plot lens.svg",
    )
    parser.add_argument("lens", type=existing_file("lens"), help="the lens: a .safetensors or a published .pt file")
    add_text_options(parser)
    add_top_option(parser, "tokens", 3)
    parser.add_argument("--rank-of", metavar="TOKEN", help="also the ranks of this token: its text, or its id")
    parser.add_argument(
        "--position",
        type=whole_number("--position"),
        default=-1,
        metavar="P",
        help="the position that is printed, from the end if negative (%(default)s)",
    )
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw all positions, as SVG, PDF or PNG")
    parser.add_argument("--colour", choices=COLOURED_BY, default="rank", help="of what is drawn (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=show)


def _add_merge(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "merge",
        help="one lens of several",
        description="Merges lenses that were fitted to other texts in the same way: the lens of all texts.",
        epilog="example: jaxcirc lens merge first.safetensors second.safetensors --out lens.safetensors",
    )
    parser.add_argument("lenses", nargs="+", type=existing_file("lenses"), help="the lenses")
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        type=_lens_file("--out"),
        help="file for the lens: .safetensors, or .pt as it is published",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=merge)


def _add_convert(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "convert",
        help="a published file as one of ours, or the other way round",
        description="Reads a lens, or a checkpoint of one, and writes it as the suffix says: .safetensors, or .pt as it is published.",
        epilog="example: jaxcirc lens convert published.pt --out lens.safetensors",
    )
    parser.add_argument("lens", type=existing_file("lens"), help="the lens")
    parser.add_argument(
        "--out",
        metavar="FILE",
        required=True,
        type=_lens_file("--out"),
        help="file for the lens: .safetensors, or .pt as it is published",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.set_defaults(command=convert)


def _lens_file(option: str):
    """Takes a file that a lens is written to."""
    writable = new_file(option)

    def read(text: str) -> Path:
        path = writable(text)
        try:
            return check_suffix(option, path)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def fit(arguments: argparse.Namespace) -> int:
    tokenizer = tokenizer_of(arguments)
    texts = load_texts(arguments.prompts, tokenizer, limit=arguments.limit, length=arguments.length, bos=arguments.bos)
    if arguments.shard is not None:
        texts = texts[arguments.shard.number :: arguments.shard.of]
        if not texts:
            raise ValueError(f"--shard: there are fewer than {arguments.shard.of} texts.")
    shortest, longest = min(map(len, texts)), max(map(len, texts))
    size = f"{shortest} tokens" if shortest == longest else f"{shortest} to {longest} tokens"
    note(f"{arguments.prompts.name}: {counted(len(texts), 'text')} of {size}")
    model = load_model(arguments)
    beside = arguments.out.with_suffix(f".checkpoint{arguments.out.suffix}")
    names = "skip_first target_layer rule average clusters stop_error stop_movement least".split()
    with progress_bar() as progress:
        lens = fit_lens(
            model,
            texts,
            checkpoint=arguments.checkpoint or beside,
            mesh=Mesh(np.array(jax.local_devices()), ("data",)) if jax.local_device_count() > 1 else None,
            progress=progress,
            **{name: getattr(arguments, name) for name in names},
        )
    lens.save(arguments.out)
    if arguments.checkpoint is None:
        beside.unlink(missing_ok=True)
    _show_fit(arguments, model, lens, texts)
    return 0


def _show_fit(arguments: argparse.Namespace, model: Transformer, lens: JacobianLens, texts: list[np.ndarray]) -> None:
    ranks = lens.next_token(model, texts[:COMPARED])
    facts = {"model": model.name, "prompts": lens.n_prompts, "skipped": lens.n_skipped, "out": str(arguments.out)}
    rows = []
    for row in ranks.to_dict("records"):
        layer = int(row["layer"])
        own = layer in lens.J
        errors = [float(x) for x in np.atleast_1d(lens.relative_error[layer])] if own else []
        size = float(np.linalg.norm(lens.J[layer]) / model.d_model**0.5) if own else None
        error = None if not errors or np.isnan(max(errors)) else max(errors)
        rows.append({**row, "layer": layer, "size": size, "relative_error": error})
    if arguments.json:
        say_json({**facts, "rows": rows})
        return
    print(f"Jacobian lens of {model.name}, {counted(lens.n_prompts, 'text')}, {arguments.rule} Jacobians\n")
    print("rank of the token that follows, median (first in), by")
    print("layer     this lens         logit lens        size   standard error")
    for row in rows:
        by = (f"{row[f'{name}_median']:z8.1f} ({row[f'{name}_top']:z5.1%})" for name in ("lens", "logit_lens"))
        size = "" if row["size"] is None else f"{row['size']:z10.3f}"
        error = "" if row["relative_error"] is None else f"{row['relative_error']:z15.1%}"
        print(f"{row['layer']:>5}  {'  '.join(by)}  {size}{error}")
    print(f"\nsaved to {arguments.out}.")


def show(arguments: argparse.Namespace) -> int:
    lens = JacobianLens.load(arguments.lens)
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    chosen = token_of(tokenizer, "--rank-of", arguments.rank_of)
    at = position_of(arguments, len(tokens))
    model = load_model(arguments)
    read = lens.readout(model, tokens, arguments.top, ranks_of=[] if chosen is None else [chosen])
    if arguments.plot:
        lens.plot(model, tokens, tokenizer, colour=arguments.colour, path=arguments.plot)
    text = str if tokenizer is None else (lambda token: tokenizer.decode([token]))
    rows = [_row(read, i, at, text, chosen is not None) for i in range(len(read.layers))]
    if arguments.json:
        place = {
            "position": at,
            "token": text(int(tokens[at])),
            "plot": str(arguments.plot) if arguments.plot else None,
        }
        say_json({"model": model.name, "prompts": lens.n_prompts, **place, "rows": rows})
        return 0
    print(f"{model.name} at {at} {text(int(tokens[at]))!r}, read by a lens of {counted(lens.n_prompts, 'prompt')}\n")
    follows = at + 1 < len(tokens)
    header = f"layer{'  next: lens  logit lens' * follows}{'  rank of token' * (chosen is not None)}  strongest"
    print(header)
    for row in reversed(rows):
        ranks = f"{row['next_rank']:>12}{row['logit_lens_rank']:>12}" if follows else ""
        own = f"{row['rank']:>15}" if chosen is not None else ""
        print(f"{row['layer']:>5}{ranks}{own}  " + "  ".join(f"{t!r} {v:z.2f}" for t, v in row["top"]))
    if arguments.plot:
        print(f"\ndrawn in {arguments.plot}.")
    return 0


def _row(read: Any, i: int, at: int, text: Any, ranked: bool) -> dict[str, Any]:
    """What one layer reads at one position."""
    strongest = zip(np.asarray(read.tokens[i, at]).tolist(), np.asarray(read.logits[i, at]).tolist(), strict=True)
    follows = at < read.next_rank.shape[1]
    return {
        "layer": read.layers[i],
        "next_rank": int(read.next_rank[i, at]) if follows else None,
        "logit_lens_rank": int(read.logit_lens_rank[i, at]) if follows else None,
        "rank": int(read.ranks[i, at, 0]) if ranked else None,
        "entropy": float(read.entropy[i, at]),
        "top": [(text(token), value) for token, value in strongest],
    }


def merge(arguments: argparse.Namespace) -> int:
    lens = JacobianLens.merge([JacobianLens.load(path) for path in arguments.lenses])
    lens.save(arguments.out)
    if arguments.json:
        say_json({"lenses": len(arguments.lenses), **_about(lens, arguments)})
    else:
        print(f"{counted(len(arguments.lenses), 'lens')} of {counted(lens.n_prompts, 'prompt')} in {arguments.out}.")
    return 0


def convert(arguments: argparse.Namespace) -> int:
    lens = JacobianLens.load(arguments.lens)
    lens.save(arguments.out)
    if arguments.json:
        say_json(_about(lens, arguments))
        return 0
    layers = f"layers {lens.layers[0]} to {lens.layers[-1]}, to the output of layer {lens.target_layer}"
    print(f"{layers}, {counted(lens.n_prompts, 'prompt')}, in {arguments.out}.")
    return 0


def _about(lens: JacobianLens, arguments: argparse.Namespace) -> dict[str, Any]:
    """What was written."""
    return {
        "prompts": lens.n_prompts,
        "layers": list(lens.layers),
        "target_layer": lens.target_layer,
        "out": str(arguments.out),
    }
