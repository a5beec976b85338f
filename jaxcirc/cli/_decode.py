"""`jaxcirc decode`: a latent, a neuron, a head or a vector, read in tokens."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._files import open_safetensors, read_tensor
from .._precision import wide
from .._run import site_shapes
from .._sites import did_you_mean, Kind, Site
from .._words import counted
from ..components import decode
from ..interop import check_saes, load_saes
from ..models import check_known, Transformer
from ._common import load_model, say_json, Subparsers, tokenizer_of
from ._in_words import in_words, listed
from ._loading import add_model_option, add_tokenizer_options, check_heads
from ._options import count, existing_file, head, site
from ._tables import add_table_option, save_table


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "decode",
        help="what a latent, a neuron, a head or a vector says in tokens",
        description="Reads directions in tokens: by how much a step along each raises or lowers the logit of every token, by what it adds "
        "to the residual stream itself and not by way of later layers. No prompt is run.",
        epilog="example: jaxcirc decode --model tiny-gpt2 --saes tiny-gpt2 --site blocks.1.hook_mlp_out --unit 196",
    )
    add_model_option(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--unit",
        type=count("--unit", "latents are before it", least=0),
        metavar="N",
        help="number of the latent or neuron",
    )
    which.add_argument(
        "--head", nargs="+", type=head("--head"), metavar="L.H", help="whose singular vectors are read, such as 3.1"
    )
    which.add_argument(
        "--vector",
        type=existing_file("--vector"),
        metavar="FILE",
        help=".npy or .safetensors file of a vector that is read at --site, or of several, one a row",
    )
    parser.add_argument(
        "--saes",
        metavar="DICTIONARIES",
        help="a shipped model's name, or a folder of dictionaries, for --unit; without, it is a neuron",
    )
    parser.add_argument("--site", type=site("--site"), metavar="SITE", help="such as blocks.1.hook_mlp_out")
    parser.add_argument(
        "--reads", action="store_true", help="what the latent or the head reads, in place of what it writes"
    )
    parser.add_argument("--tensor", metavar="NAME", help="which tensor of a .safetensors file (the only one)")
    parser.add_argument(
        "--singular",
        type=count("--singular", "singular vectors of each head"),
        default=3,
        metavar="N",
        help="how many singular vectors of each head (%(default)s)",
    )
    parser.add_argument(
        "--top",
        type=count("--top", "tokens to print"),
        default=8,
        metavar="N",
        help="how many tokens to print, of those raised and of those lowered (%(default)s)",
    )
    add_tokenizer_options(parser)
    add_table_option(parser, "directions and tokens")
    parser.set_defaults(command=read)


class Directions(NamedTuple):
    """What is read: a name for each, its singular value if it has one, the vectors, the site where they are, and the dictionaries."""

    names: list[str]
    values: list[float | None]
    vectors: Any
    site: Site | None
    saes: dict[Site, Any]


def read(arguments: argparse.Namespace) -> int:
    _check(arguments)
    tokenizer = tokenizer_of(arguments)
    saes = load_saes(arguments.saes) if arguments.saes else {}
    given = None if arguments.vector is None else _vectors(arguments.vector, arguments.tensor)
    model = load_model(arguments)
    if arguments.head:
        read = _of_heads(model, arguments)
    elif given is not None:
        read = _of_file(arguments, given)
    else:
        read = _of_unit(model, saes, arguments)
    found = decode(model, read.vectors, read.site, saes=read.saes)
    words = in_words(found, min(arguments.top, found.logits.shape[-1]), tokenizer)
    rows = [
        {"direction": name, "value": value, **each}
        for name, value, each in zip(read.names, read.values, words, strict=True)
    ]
    if arguments.out:
        table = found.table(tokenizer, min(arguments.top, found.logits.shape[-1]))
        table["direction"] = np.array(read.names, object)[table["direction"].to_numpy()]
        save_table(table, arguments.out)
    if arguments.json:
        out = str(arguments.out) if arguments.out else None
        say_json({"model": model.name, "reads": arguments.reads, "rows": rows, "out": out})
        return 0
    for row in rows:
        value = "" if row["value"] is None else f", singular value {row['value']:z.4g}"
        print(f"{row['direction']}{value}\n  raises  {listed(row['top'])}\n  lowers  {listed(row['bottom'])}\n")
    print(
        f"{counted(len(rows), 'direction')} of {model.name}: changes of logits, less their mean, by a step of 1, with the final norm's "
        "scale taken as 1."
    )
    if arguments.head:
        print("A singular vector turned around is as good.")
    if arguments.reads:
        print("What is read is shown as if it were written: the tokens whose unembeddings are like it.")
    if arguments.out:
        print(f"written to {arguments.out}.")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """ValueError for options that do not go together, before anything is loaded."""
    asked = next(name for name in ("unit", "head", "vector") if getattr(arguments, name) is not None)
    if asked != "unit" and arguments.saes:
        raise ValueError(f"--saes is for --unit, whose dictionary it names. With --{asked} leave it out.")
    if asked == "head" and arguments.site:
        raise ValueError("--site is not for --head: a head has its own. Leave it out.")
    if asked != "head" and arguments.site is None:
        raise ValueError(f"--{asked} is at a site. Give --site, such as blocks.1.hook_mlp_out.")
    if arguments.reads and (asked == "vector" or (asked == "unit" and not arguments.saes)):
        raise ValueError("--reads is of a latent, by --unit and --saes, or of a head. Leave it out.")
    if arguments.tensor is not None and (asked != "vector" or arguments.vector.suffix != ".safetensors"):
        raise ValueError("--tensor names one of a .safetensors file's, by --vector. Leave it out.")
    if arguments.saes:
        check_saes(arguments.saes)


def _of_unit(model: Transformer, saes: dict[Site, Any], arguments: argparse.Namespace) -> Directions:
    """A latent, or a neuron where there are no dictionaries."""
    place, unit = Site.parse(arguments.site), arguments.unit
    if arguments.saes and place not in saes:
        there = ", ".join(f"`{each}`" for each in saes)
        raise ValueError(f"--site: there is no dictionary at `{place}`. There are at: {there}.")
    shapes = site_shapes(model, 1)
    if place not in shapes:
        hint = did_you_mean(str(place), map(str, shapes))
        raise ValueError(f"--site: no site `{place}` in {model.name} with {model.n_layers} layers. {hint}")
    if place not in saes and place.kind != Kind.MLP_POST:
        raise ValueError(
            f"--unit without --saes is a neuron, of `mlp.hook_post` of a layer, and `{place}` is another site. Name dictionaries by --saes."
        )
    width = saes[place].d_sae if place in saes else shapes[place].shape[1]
    if unit >= width:
        raise ValueError(f"--unit: the units at `{place}` are 0 to {width - 1}; got {unit}.")
    what = f"{'latent' if place in saes else 'neuron'} {unit} at {place}"
    if not arguments.reads:
        where = place.acts if place in saes else place
        return Directions([f"{what}, what it writes"], [None], jnp.eye(1, width, unit), where, saes)
    direction = wide(saes[place].W_enc)[:, unit]
    if len(direction) != model.d_model:
        raise ValueError(
            f"--reads: the dictionary at `{place}` reads {len(direction)} numbers, and the residual stream has {model.d_model}: what is "
            "read elsewhere has no words."
        )
    return Directions([f"{what}, what it reads"], [None], direction[None], None, {})


def _of_heads(model: Transformer, arguments: argparse.Namespace) -> Directions:
    """The leading singular vectors of what each head makes of what it attends to, `W_V W_O`."""
    check_known("decode", model, "attn")
    check_heads(model, arguments.head)
    names, values, vectors = [], [], []
    for layer, number in arguments.head:
        attn = model.blocks[layer].attn
        W_V, W_O = (np.asarray(wide(W), np.float64) for W in (attn.W_V, attn.W_O))
        left, sizes, right = _singular(W_V[number // (len(W_O) // len(W_V))], W_O[number])
        most = min(arguments.singular, len(sizes))
        what = "reads" if arguments.reads else "writes"
        names += [f"head {layer}.{number}, what singular vector {i} {what}" for i in range(most)]
        values += [float(size) for size in sizes[:most]]
        vectors += [left[:, i] if arguments.reads else right[i] for i in range(most)]
    return Directions(names, values, jnp.asarray(np.stack(vectors)), None, {})


def _singular(
    W_V: Float[np.ndarray, "d_model d_head"], W_O: Float[np.ndarray, "d_head d_model"]
) -> tuple[Float[np.ndarray, "d_model d_head"], Float[np.ndarray, " d_head"], Float[np.ndarray, "d_head d_model"]]:
    """The singular triples of `W_V @ W_O`, which is `[d_model d_model]` and not made."""
    of_values, inner = np.linalg.qr(W_V)
    of_outputs, outer = np.linalg.qr(W_O.T)
    left, sizes, right = np.linalg.svd(inner @ outer.T)  # [d_head d_head]
    return of_values @ left, sizes, right @ of_outputs.T


def _of_file(arguments: argparse.Namespace, vectors: np.ndarray) -> Directions:
    place = Site.parse(arguments.site)
    several = vectors.ndim > 1 and place.kind not in (Kind.Z, Kind.RESULT)
    rows = vectors if several else vectors[None]
    names = [f"{arguments.vector.name}{f' row {i}' if several else ''} at {place}" for i in range(len(rows))]
    return Directions(names, [None] * len(rows), jnp.asarray(rows), place, {})


def _vectors(path: Path, name: str | None) -> np.ndarray:
    """The numbers of a file. **Raises:** `ValueError` for a file of another kind, of none or of too many tensors, and for no numbers."""
    if path.suffix == ".safetensors":
        with open_safetensors(path) as file:
            names = list(file.keys())
            if name is None and len(names) != 1:
                raise ValueError(f"--vector: {path} holds {counted(len(names), 'tensor')}. Say which one by --tensor.")
            if name is not None and name not in names:
                hint = did_you_mean(name, names)
                raise ValueError(f"--tensor: {path} holds no tensor {name!r}. {hint}".rstrip())
            found = read_tensor(file, names[0] if name is None else name, path)
    else:
        try:
            found = np.load(path)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"--vector {path} is no .npy file of numbers ({error}).") from None
    found = np.asarray(found)
    if found.dtype.kind in "OUSbc" or not found.ndim or not found.size:
        raise ValueError(f"--vector {path}: expected vectors of numbers, got {found.dtype}{list(found.shape)}.")
    found = found.astype(np.float64)
    if not np.isfinite(found).all():
        raise ValueError(f"--vector {path} holds numbers that are not finite.")
    return found
