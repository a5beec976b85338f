"""`jaxcirc spectra`: singular values of Jacobians from one site to each layer, and their vectors in tokens."""

import argparse
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from .. import jacobian as jac
from .._files import writing_file
from .._sites import Kind, Part, Site
from .._tokens import token_texts
from ..components import decode
from ..components._decode import STREAM
from ..models import Transformer
from ..view import draw_spectra
from ._common import add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._frozen import held, SAID
from ._in_words import add_words_option, in_words, named
from ._options import count, figure, new_file, site, whole_number


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "spectra",
        help="singular values of Jacobians layer by layer, in tokens",
        description="Computes the leading singular values and vectors of the Jacobians from one site to sites of several layers, for one "
        "prompt, without making the matrices; reads the vectors in tokens.",
        epilog="example: jaxcirc spectra --model tiny-gpt2 --prompt 'The teachers that the doctor likes' --source hook_embed "
        "--target-positions -1 --freeze detached --top 3",
    )
    add_text_options(parser)
    parser.add_argument(
        "--source", required=True, type=site("--source"), metavar="SITE", help="such as blocks.0.hook_resid_pre"
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        type=site("--targets"),
        metavar="SITE",
        help="such as blocks.3.hook_resid_post, one or several whose values have one shape (hook_resid_post of each layer)",
    )
    for end in ("source", "target"):
        parser.add_argument(
            f"--{end}-positions",
            type=whole_number(f"--{end}-positions"),
            nargs="+",
            metavar="P",
            help=f"only these positions of the {end}, from the end if negative (all)",
        )
    parser.add_argument(
        "--freeze", nargs="+", default=[], metavar="WHAT", help=f"what is held: {SAID}; or any sites (nothing)"
    )
    parser.add_argument(
        "--top",
        type=count("--top", "singular values to print"),
        default=8,
        metavar="N",
        help="how many singular values to print, and to find (%(default)s)",
    )
    add_words_option(parser)
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=new_file("--out", ".safetensors"),
        help="file for singular values and vectors, .safetensors",
    )
    parser.add_argument("--plot", type=figure("--plot"), metavar="FILE", help="draw a curve each, as SVG, PDF or PNG")
    parser.set_defaults(command=spectra)


def spectra(arguments: argparse.Namespace) -> int:
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None else tokenizer_of(arguments)
    model = load_model(arguments)
    targets = arguments.targets or _of_each_layer(model, Site.parse(arguments.source))
    found = jac.spectra(
        model,
        tokens,
        arguments.source,
        targets,
        rank=arguments.top,
        frozen=held(arguments.freeze, model),
        source_pos=arguments.source_positions,
        target_pos=arguments.target_positions,
    )
    texts = token_texts(tokenizer, np.asarray(tokens))
    rows = _rows(found, model, tokenizer, texts, arguments)
    if arguments.out:
        edges = [[str(site) for site in edge] for edge in found.edges]
        tensors = {name: np.ascontiguousarray(getattr(found, name)) for name in ("values", "left", "right")}
        with writing_file(arguments.out) as aside:
            save_file(tensors, aside, {"model": model.name, "edges": json.dumps(edges)})
    if arguments.plot:
        draw_spectra(found, arguments.plot, title=f"Singular values of Jacobians of {model.name}")
    places = {name: str(at) if (at := getattr(arguments, name)) else None for name in ("out", "plot")}
    if arguments.json:
        say_json({"model": model.name, "tokens": texts, "frozen": arguments.freeze, "rows": rows, **places})
        return 0
    print(f"{model.name}; held: {', '.join(arguments.freeze) or 'nothing'}")
    for row in rows:
        print(f"\n{row['target']} by {row['source']}")
        for value, *vectors in zip(row["values"], row["left"], row["right"], strict=True):
            ends = (_line(end, vector) for end, vector in zip(("to", "from"), vectors, strict=True) if vector)
            print(f"  {value:z10.4g}  {'   '.join(ends)}".rstrip())
    if any(vector for row in rows for vector in row["left"] + row["right"]):
        print(
            "\nEach vector at the position where it is largest: the tokens that it raises | lowers, read as what is added to the residual "
            "stream. Both\nvectors of a pair turned around are as good."
        )
    for name, at in places.items():
        if at:
            print(f"{'saved to' if name == 'out' else 'drawn in'} {at}.")
    return 0


def _line(end: str, vector: dict[str, Any]) -> str:
    words = f": {named(vector['top'])} | {named(vector['bottom'])}"
    return f"{end} {vector['position']} {vector['token']!r}{words}"


def _of_each_layer(model: Transformer, source: Site) -> list[Site]:
    """The residual stream behind each layer that comes behind a source."""
    found = [Site(layer, Kind.RESID_POST) for layer in range(model.n_layers)]
    behind = [target for target in found if source < target]
    if not behind:
        raise ValueError(f"--source: no layer comes behind `{source}`. Choose an earlier site, or give --targets.")
    return behind


def _rows(
    found: jac.Spectra, model: Transformer, tokenizer: Any, texts: list[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of each Jacobian its singular values, and of each vector where it is largest and what it says there."""
    rows = []
    for i, (source, target) in enumerate(found.edges):
        row = {"source": str(source), "target": str(target), "values": [float(value) for value in found.values[i]]}
        for name, place, chosen in (
            ("left", target, arguments.target_positions),
            ("right", source, arguments.source_positions),
        ):
            vectors = np.asarray(getattr(found, name)[i])
            row[name] = _read(vectors, place, chosen, model, tokenizer, texts, arguments.words)
        rows.append(row)
    return rows


def _read(
    vectors: Any, place: Site, chosen: list[int] | None, model: Transformer, tokenizer: Any, texts: list[str], most: int
) -> list[dict[str, Any] | None]:
    if not most or place.kind not in STREAM or place.part != Part.VALUE:
        return [None] * len(vectors)
    norms = np.linalg.norm(vectors, axis=-1)  # [rank position]
    at = norms.argmax(1)
    positions = [each % len(texts) for each in chosen] if chosen else list(range(len(texts)))
    here = decode(model, jnp.asarray(vectors[np.arange(len(vectors)), at]), place)
    words = in_words(here, min(most, here.logits.shape[-1]), tokenizer)
    return [
        {
            "position": positions[p],
            "token": texts[positions[p]],
            "share": float(norms[i, p] ** 2 / (norms[i] ** 2).sum()),
            **words[i],
        }
        for i, p in enumerate(at)
    ]
