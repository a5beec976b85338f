"""`jaxcirc mean-jacobian`: the mean Jacobian of an MLP over a file of texts."""

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import jacobian as jac
from .._sites import Site
from .._words import counted
from ..components import decode
from ..components._decode import STREAM
from ..jacobian._mean_result import FORMAT, WHAT
from ..models import Transformer
from ._common import load_model, progress_bar, say_json, Subparsers, tokenizer_of
from ._corpus import add_corpus_options, check_place, texts_of, weighed_texts
from ._frozen import held, SAID
from ._in_words import add_words_option, in_words, named
from ._options import count, new_file, site
from ._results import add_top_option


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "mean-jacobian",
        help="the mean Jacobian of an MLP over a file of texts",
        description="Computes the mean over all positions of a file of texts of the Jacobian of one layer's MLP with its norm: what the "
        "MLP does on average to what it reads. Its norms, its leading singular values, and what their vectors say in tokens; with --out "
        "the matrix.",
        epilog="example: jaxcirc mean-jacobian --model tiny-gpt2 --prompts texts.txt --layer 1 --out mean.safetensors",
    )
    add_corpus_options(parser)
    parser.add_argument(
        "--layer",
        type=count("--layer", "blocks come before that of the MLP", least=0),
        metavar="N",
        help="the layer of the MLP, from 0",
    )
    parser.add_argument(
        "--source", type=site("--source"), metavar="SITE", help="such as blocks.1.mlp.hook_in (what the MLP reads)"
    )
    parser.add_argument(
        "--target", type=site("--target"), metavar="SITE", help="such as blocks.1.hook_resid_post (what the MLP adds)"
    )
    parser.add_argument(
        "--freeze", nargs="+", default=[], metavar="WHAT", help=f"what is held: {SAID}; or any sites (nothing)"
    )
    add_top_option(parser, "singular values", 8)
    add_words_option(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=new_file("--out", ".safetensors"),
        help="file for the mean, .safetensors, with its certificate",
    )
    parser.set_defaults(command=mean_jacobian)


def mean_jacobian(arguments: argparse.Namespace) -> int:
    if arguments.layer is None and arguments.source is None and arguments.target is None:
        raise ValueError("--layer says of which MLP. Give it, or the sites around one, --source and --target.")
    check_place(arguments.out, FORMAT, WHAT)
    tokenizer = tokenizer_of(arguments)
    texts = texts_of(arguments, tokenizer)
    model = load_model(arguments)
    corpus = weighed_texts(arguments, model, texts)
    frozen = held(arguments.freeze, model)
    ends = {"source": arguments.source, "target": arguments.target}
    layer = arguments.layer
    if layer is None and arguments.source is None:
        layer = Site.parse(arguments.target).layer
    with progress_bar() as progress:
        J = jac.mean(model, corpus, layer, **ends, frozen=frozen, progress=progress)
    facts = _measure(J, model, tokenizer, arguments)
    certificate = J.save(arguments.out) if arguments.out else J.certificate()
    assert certificate is not None
    facts |= {"certificate": certificate.as_dict(), "out": str(arguments.out) if arguments.out else None}
    if arguments.json:
        say_json(facts)
        return 0
    print(f"mean of {J.target} by {J.source} {list(J.matrix.shape)} in {model.name}")
    print(f"over {counted(J.n_positions, 'position')} of {counted(J.n_prompts, 'text')}, {facts['engine']}")
    print(f"Frobenius norm {facts['frobenius']:z.6g}, spectral norm {facts['singular_values'][0]:z.6g}\n")
    for row in facts["rows"]:
        words = f"{named(row['target']['top'])} | {named(row['target']['bottom'])}" if row["target"] else ""
        print(f"  {row['value']:z10.4g}  {words}".rstrip())
    if facts["rows"][0]["target"]:
        print("\nsingular values; tokens that the target's vector raises | lowers. Turned around it is as good.")
    print(f"certificate: {certificate}")
    if arguments.out:
        print(f"saved to {arguments.out}: any reader of safetensors opens it.")
    return 0


def _measure(J: jac.MeanJacobian, model: Transformer, tokenizer: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    left, values, _ = np.linalg.svd(J.matrix)
    most = min(arguments.top, len(values))
    words: list[Any] = [None] * most
    if arguments.words and J.target.kind in STREAM:
        found = decode(model, jnp.asarray(left.T[:most]), J.target)
        words = in_words(found, min(arguments.words, found.logits.shape[-1]), tokenizer)
    return {
        "model": model.name,
        "source": str(J.source),
        "target": str(J.target),
        "shape": list(J.matrix.shape),
        "positions": J.n_positions,
        "texts": J.n_prompts,
        "frozen": list(J.frozen),
        "engine": J.engine,
        "frobenius": float(np.linalg.norm(J.matrix)),
        "trace": float(np.trace(J.matrix)),
        "singular_values": [float(value) for value in values],
        "rows": [{"value": float(value), "target": each} for value, each in zip(values[:most], words, strict=True)],
    }
