"""`jaxcirc lens fit`: a Jacobian lens fitted to a file of texts."""

import argparse

import jax
import numpy as np
from jax.sharding import Mesh

from .._words import counted
from ..data._texts import load_texts
from ..jacobian._rules import RULES
from ..lens import fit_lens, JacobianLens
from ..lens._fit import AVERAGES
from ..lens._running import whole
from ..models import Transformer
from ._common import load_model, note, progress_bar, say_json, Subparsers, tokenizer_of
from ._corpus import add_corpus_options
from ._lens_file import add_out, lens_file
from ._options import count, part_of, threshold, whole_number


COMPARED = 20  # prompts on which a fitted lens is compared with the logit lens


def add(parts: Subparsers) -> None:
    parser = parts.add_parser(
        "fit",
        help="fit a lens to a file of texts",
        description="Fits the mean Jacobian of each layer to a corpus, on all devices of this process. Stopped at any moment, it goes on "
        "where it was.",
        epilog="example: jaxcirc lens fit --model tiny-gpt2 --prompts texts.txt --limit 100 --out lens.safetensors",
    )
    add_corpus_options(parser, length=128, skip_first=16)
    add_out(parser)
    parser.add_argument(
        "--checkpoint",
        type=lens_file("--checkpoint"),
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
    parser.set_defaults(command=fit)


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


def _mean(lens: JacobianLens, layer: int) -> np.ndarray:
    """The mean over all positions, whatever the lens divides it into."""
    running = lens.means[layer]
    return np.asarray(whole(running.mean, running.weight, summed=lens.settings.average == "head"))


def _show_fit(arguments: argparse.Namespace, model: Transformer, lens: JacobianLens, texts: list[np.ndarray]) -> None:
    ranks = lens.next_token(model, texts[:COMPARED])
    facts = {"model": model.name, "prompts": lens.n_prompts, "skipped": lens.n_skipped, "out": str(arguments.out)}
    rows = []
    for row in ranks.to_dict("records"):
        layer = int(row["layer"])
        own = layer in lens.J
        errors = [float(x) for x in np.atleast_1d(lens.relative_error[layer])] if own else []
        size = float(np.linalg.norm(_mean(lens, layer)) / model.d_model**0.5) if own else None
        error = None if not errors or np.isnan(errors).any() else max(errors)
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
