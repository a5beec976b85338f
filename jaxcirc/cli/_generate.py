"""`jaxcirc generate`: the text that a model goes on with, and beside it the text that it goes on with when it is steered."""

import argparse
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_number
from .._edits import AbstractEdit, Add, Apply, At
from .._files import write_text, writing_file
from .._run import site_shapes
from .._sites import did_you_mean, Site
from ..generation import compare, generate, Generation
from ..interop import check_saes, load_saes
from ..models import Transformer
from ..saes import AbstractDictionary
from ._common import add_seed_option, add_text_options, load_model, say_json, Subparsers, tokenizer_of, tokens_of
from ._options import count, existing_file, new_file, number, site, threshold


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="go on from a text, steered and unsteered",
        description="Goes on from a text by the model alone, and with latents, neurons or the residual stream moved; shows both texts.",
        epilog="example: jaxcirc generate --model tiny-gpt2 --prompt 'The teachers that the doctor likes' --saes tiny-gpt2 "
        "--steer blocks.1.hook_mlp_out:196=20 --from -1 -n 12 --temperature 1 --seed 3",
    )
    add_text_options(parser)
    parser.add_argument(
        "-n",
        type=count("-n", "tokens to generate"),
        default=20,
        metavar="N",
        help="how many tokens at most (%(default)s)",
    )
    parser.add_argument(
        "--saes",
        metavar="DICTIONARIES",
        help="a shipped model's name, or a folder of dictionaries, whose latents are steered",
    )
    parser.add_argument(
        "--steer",
        nargs="+",
        type=_move,
        default=[],
        metavar="MOVE",
        help="SITE:UNIT=X sets a latent, or a neuron where there is no dictionary, SITE:UNIT+=X adds to it, SITE:UNIT*=X multiplies it",
    )
    parser.add_argument(
        "--vector",
        type=existing_file("--vector"),
        metavar="FILE",
        help=".npy file of a vector that is added at --site",
    )
    parser.add_argument("--site", type=site("--site"), metavar="SITE", help="such as blocks.1.hook_mlp_out")
    parser.add_argument(
        "--scale", type=number("--scale"), default=1.0, metavar="X", help="how much of the direction (%(default)s)"
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=_start,
        default=0,
        metavar="POSITION",
        help="steer from this position on, -1 for the prompt's last, or 'new' for new tokens alone (%(default)s)",
    )
    parser.add_argument(
        "--temperature",
        type=threshold("--temperature"),
        default=0.0,
        metavar="T",
        help="0 for the likeliest tokens, else they are drawn (%(default)g)",
    )
    add_seed_option(parser)
    parser.add_argument("--texts", type=count("--texts", "texts to draw"), metavar="N", help="how many texts to draw")
    parser.add_argument(
        "--out",
        type=new_file("--out", ".json"),
        metavar="FILE",
        help="file for tokens, log-probabilities and texts, as JSON",
    )
    parser.set_defaults(command=generate_text)


class Move(NamedTuple):
    """A latent or a neuron to move: its value becomes `value * factor + offset`."""

    site: Site
    unit: int
    factor: float
    offset: float


class Moved(eqx.Module):
    """Units of a site, each multiplied and added to."""

    factor: Float[Array, " d_sae"]
    offset: Float[Array, " d_sae"]

    def __call__(self, x: Float[Array, "seq d_sae"]) -> Float[Array, "seq d_sae"]:
        return x * self.factor + self.offset


def _checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def value_of(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return value_of


@_checked
def _move(text: str) -> Move:
    found = re.fullmatch(r"(?P<site>[^:]+):(?P<unit>\d+)(?P<how>[+*]?)=(?P<value>.+)", text)
    try:
        value = float(found["value"] if found else "none")
    except ValueError:
        found, value = None, 0.0
    if not found:
        raise ValueError(
            f"--steer: A move is written SITE:UNIT=X, SITE:UNIT+=X or SITE:UNIT*=X, such as blocks.1.hook_mlp_out:17+=4; got {text!r}."
        )
    check_number("--steer", value)
    try:
        place = Site.parse(found["site"])
    except ValueError as error:
        raise ValueError(f"--steer: {error}") from None
    factor, offset = {"": (0.0, value), "+": (1.0, value), "*": (value, 0.0)}[found["how"]]
    return Move(place, int(found["unit"]), factor, offset)


@_checked
def _start(text: str) -> int | str:
    if text != "new" and not re.fullmatch(r"-?\d+", text):
        raise ValueError(f"--from is a position, or 'new'; got {text!r}.")
    return text if text == "new" else int(text)


def generate_text(arguments: argparse.Namespace) -> int:
    if (arguments.vector is None) != (arguments.site is None):
        raise ValueError("--vector and --site go together: the vector that is added, and where.")
    if arguments.texts and not arguments.temperature:
        raise ValueError("--texts draws texts, and at temperature 0 all are one. Give --temperature 1.")
    if arguments.saes is not None:
        check_saes(arguments.saes)
    tokens = tokens_of(arguments)
    tokenizer = None if arguments.prompt is None and not arguments.tokenizer else tokenizer_of(arguments)
    saes = {} if arguments.saes is None else load_saes(arguments.saes)
    model = load_model(arguments)
    used, edits = _edits(arguments, model, saes)
    about = {
        "temperature": arguments.temperature,
        "key": jax.random.key(arguments.seed),
        "samples": arguments.texts,
    }
    given = (model, tokenizer, np.asarray(tokens), arguments.n)
    if edits:
        both = compare(*given, edits=edits, saes=used, **about)
        texts = {"unsteered": both.unsteered, "steered": both.steered}
    else:
        texts = {"unsteered": generate(*given, **about)}
    document = {
        "model": model.name,
        "prompt": np.asarray(tokens).tolist(),
        **{name: [_as_json(each) for each in text.samples] for name, text in texts.items()},
    }
    if arguments.out:
        with writing_file(arguments.out) as aside:
            write_text(aside, json.dumps(document))
    if arguments.json:
        say_json({**document, "out": str(arguments.out) if arguments.out else None})
        return 0
    _show(texts)
    if arguments.out:
        print(f"\nsaved to {arguments.out}.")
    return 0


def _edits(
    arguments: argparse.Namespace, model: Transformer, saes: Mapping[Site, AbstractDictionary]
) -> tuple[dict[Site, AbstractDictionary], dict[Site, AbstractEdit]]:
    """The dictionaries that are spliced in, and what is done where."""
    shapes, moves = site_shapes(model, 1), {}
    for move in arguments.steer:
        moves.setdefault(move.site, []).append(move)
    edits: dict[Site, AbstractEdit] = {}
    for place, some in moves.items():
        if place not in shapes:
            hint = did_you_mean(str(place), map(str, shapes))
            raise ValueError(f"--steer: no site `{place}` in {model.name} with {model.n_layers} layers. {hint}")
        if place not in saes and len(shapes[place].shape) != 2:
            raise ValueError(
                f"--steer: `{place}` has no dictionary, and its values are no row of neurons. Give --saes."
            )
        width = saes[place].d_sae if place in saes else shapes[place].shape[1]
        edits[place.acts if place in saes else place] = Apply(_moved(some, width, model))
    if arguments.vector is not None:
        place, step = Site.parse(arguments.site), arguments.scale * _vector(arguments.vector)
        if place in edits:
            raise ValueError(f"--vector and --steer both act at `{place}`. Choose one of the two.")
        if place in shapes and step.shape != shapes[place].shape[1:]:
            raise ValueError(
                f"--vector: {arguments.vector} is of shape {list(step.shape)}, and `{place}` of {list(shapes[place].shape[1:])}."
            )
        edits[place] = Add(jnp.asarray(step, model.activation_dtype))
    pos = "new" if arguments.start == "new" else slice(arguments.start, None)
    return {place: saes[place] for place in moves if place in saes}, {
        place: At(pos, edit) for place, edit in edits.items()
    }


def _moved(moves: list[Move], width: int, model: Transformer) -> Moved:
    factor, offset = np.ones(width), np.zeros(width)
    for move in moves:
        if move.unit >= width:
            raise ValueError(f"--steer: the units at `{move.site}` are 0 to {width - 1}; got {move.unit}.")
        if [each.unit for each in moves].count(move.unit) > 1:
            raise ValueError(f"--steer: unit {move.unit} at `{move.site}` is moved twice. Make one of the two.")
        factor[move.unit], offset[move.unit] = move.factor, move.offset
    return Moved(*(jnp.asarray(x, model.activation_dtype) for x in (factor, offset)))


def _vector(path: Path) -> np.ndarray:
    try:
        found = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"--vector {path} is no .npy file of numbers ({error}).") from None
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        raise ValueError(f"--vector {path} is no .npy file of finite numbers.")
    return found


def _as_json(text: Generation) -> dict[str, Any]:
    there = np.asarray(text.mask)
    return {
        "text": text.text,
        "tokens": np.asarray(text.tokens)[there].tolist(),
        "log_probs": np.asarray(text.log_probs, np.float64)[there].tolist(),
    }


def _show(texts: Mapping[str, Generation]) -> None:
    """Prints texts beside each other, a column each."""
    width = max(20, (shutil.get_terminal_size().columns - 3) // len(texts) - 2)
    print("   ".join(f"{name:<{width}}" for name in texts).rstrip())
    for row in zip(*(text.samples for text in texts.values()), strict=True):
        columns = [_wrapped(each, width) for each in row]
        lines = max(map(len, columns))
        filled = [column + [""] * (lines - len(column)) for column in columns]
        print()
        for line in zip(*filled, strict=True):
            print("   ".join(f"{part:<{width}}" for part in line).rstrip())


def _wrapped(text: Generation, width: int) -> list[str]:
    said = _as_json(text)
    shown = " ".join(map(str, said["tokens"])) if text.text is None else text.text
    return [piece for line in shown.splitlines() or [""] for piece in textwrap.wrap(line, width) or [""]]
