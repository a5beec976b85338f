"""What the commands share: the model and prompts they are given, progress, results on the screen."""

import argparse
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._files import read_text
from .._progress import progress_bar as bar
from .._sites import Site
from .._typing import Progress
from .._words import counted
from ..attribution import ExactPatching, Gradient, IntegratedGradients
from ..circuits import Circuit, discover
from ..circuits._annotate import annotated
from ..circuits._rows import note_of
from ..data import ioi, load_prompts, Prompts
from ..data._encode import beginning, begun, check_beginnings
from ..interop import check_pretrained, check_saes, from_pretrained, load_saes
from ..interop._beginning import with_family
from ..interop._text_tokenizer import load_text_tokenizer
from ..models import Transformer
from ..saes import AbstractDictionary
from ._options import count, existing_file, threshold
from ._screen import note as note, silent
from ._timing import clock, loaded


METHODS = {
    "integrated": IntegratedGradients,
    "gradient": lambda steps: Gradient(),
    "patching": lambda steps: ExactPatching(),
}
Subparsers = Any  # argparse keeps the class of add_subparsers' result to itself


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Makes a `progress(done, of, stage)` that draws a bar on standard error, unless all is quiet."""
    if silent():
        yield lambda done, of, stage: None
        return
    with bar() as report:
        yield report


def add_prompt_options(
    parser: argparse.ArgumentParser,
    *,
    prompts: str = "file of prompt pairs",
    dictionaries: bool = True,
    required: bool = True,
    batches: bool = True,
    model: bool = True,
) -> None:
    """Adds the options of every command that runs a given model, with `dictionaries` or without, on the prompts of a file; `prompts`
    explains the file, which is `required` unless they may come from elsewhere. Without `batches` all are in memory at once. With `model`
    false the command does something without one, too, and nothing is required.
    """
    parser.add_argument(
        "--model", metavar="MODEL", required=model, help="a shipped model, a Hugging Face folder, or a Hub id"
    )
    if dictionaries:
        parser.add_argument(
            "--saes", metavar="DICTIONARIES", required=model, help="a shipped model's name, or a folder of dictionaries"
        )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=required and model,
        type=existing_file("--prompts"),
        help=f"{prompts}: JSON lines, JSON, CSV, TSV or parquet",
    )
    parser.add_argument("--tokenizer", metavar="TOKENIZER", help="where the tokenizer is, if not with the model")
    parser.add_argument("--revision", metavar="NAME", help="which revision of a Hub model")
    parser.add_argument(
        "--limit", type=count("--limit", "prompt pairs to use"), metavar="N", help="use the first N prompt pairs"
    )
    parser.add_argument(
        "--skip-unusable", action="store_true", help="leave out pairs that do not align or whose answers are split"
    )
    parser.add_argument("--first-answer", action="store_true", help="of several answers of a prompt take the first")
    add_bos_option(
        parser,
        "before each prompt (it is put where the model's tokenizer puts it by itself, as what is published was measured)",
    )
    if batches:
        parser.add_argument(
            "--batch-size",
            type=count("--batch-size", "prompt pairs are in memory at once"),
            metavar="N",
            help="prompt pairs in memory at once (all)",
        )


def load_given(
    arguments: argparse.Namespace,
) -> tuple[Transformer, dict[Site, AbstractDictionary], Prompts, Any]:
    """Loads model, dictionaries, prompts and tokenizer, as the options of `add_prompt_options` name them."""
    # The prompts first, and a model last: what is wrong with the others shows before a large one is read.
    check_saes(arguments.saes)
    tokenizer = tokenizer_of(arguments)
    prompts = load_prompt_file(arguments, tokenizer)
    saes = load_saes(arguments.saes)
    return load_model(arguments), saes, prompts, tokenizer


def load_prompt_file(arguments: argparse.Namespace, tokenizer: Any, path: Path | None = None) -> Prompts:
    """Loads the prompts that are asked for, or those of another file in the same way."""
    file: Path = arguments.prompts if path is None else path
    put_there = bool(beginning(tokenizer, arguments.bos, of_file=True))
    prompts = load_prompts(
        file,
        tokenizer,
        limit=arguments.limit,
        skip_unusable=arguments.skip_unusable,
        bos=put_there,
        first_answer=arguments.first_answer,
    )
    lengths = np.unique(np.asarray(prompts.positions["end"]) + 1)
    size = f"{lengths[0]} tokens" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]} tokens"
    put = (
        f"{tokenizer.bos_token} put before each prompt that lacks it"
        if put_there
        else "prompts as they stand in the file"
    )
    note(f"{file.name}: {counted(len(prompts), 'pair')} of {size}, {put}")
    return prompts


def add_ioi_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--ioi`, in place of a file of prompts, and `--seed`."""
    parser.add_argument(
        "--ioi",
        type=count("--ioi", "indirect-object prompts are made", least=2),
        metavar="N",
        help="make so many indirect-object prompts instead, in both orders of names; they have positions IO, S1, S1+1, S2 and end",
    )
    add_seed_option(parser)


def add_seed_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--seed`, of all that is made or drawn at random."""
    parser.add_argument(
        "--seed",
        type=count("--seed", "to begin random numbers with", least=0),
        default=0,
        metavar="N",
        help="the same seed makes and draws the same (%(default)s)",
    )


def check_prompts_or_ioi(arguments: argparse.Namespace) -> None:
    """ValueError unless a file of prompts or `--ioi` is asked for, and not both."""
    if (arguments.prompts is None) == (arguments.ioi is None):
        raise ValueError("one of the arguments --prompts and --ioi is required, and not both.")


def prompts_or_ioi(arguments: argparse.Namespace, tokenizer: Any, **options: Any) -> Prompts:
    """Loads the prompts of the file, or makes those that `--ioi` asks for, with the `options` of `jc.data.ioi`."""
    if arguments.prompts is not None:
        return load_prompt_file(arguments, tokenizer)
    prompts = ioi(tokenizer, arguments.ioi, template="mixed", seed=arguments.seed, bos=arguments.bos, **options)
    note(f"{counted(len(prompts), 'indirect-object prompt')} of {prompts.clean.shape[1]} tokens")
    return prompts


def load_model(arguments: argparse.Namespace) -> Transformer:
    """Loads the model that is asked for, after all else that is read."""
    model = from_pretrained(arguments.model, revision=arguments.revision)
    loaded()
    return model


def say_json(facts: Mapping[str, Any]) -> None:
    """Prints the one object of `--json`, with the seconds that each phase took."""
    print(json.dumps({**facts, "seconds": clock().seconds()}))


def add_bos_option(parser: argparse.ArgumentParser, where: str) -> None:
    """Adds `--bos` and `--no-bos`; neither is the default that `where` states.

    One rule a family for all commands, as `jc.load_tokenizer` states it: the beginning-of-text token is put where the model's tokenizer
    puts it by itself, and of GPT-2 and GPT-Neo before a text of one's own; token ids of a file are taken as they stand.
    """
    parser.add_argument("--bos", action=argparse.BooleanOptionalAction, help=f"put the beginning-of-text token {where}")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that runs a given model on one text."""
    parser.add_argument(
        "--model", metavar="MODEL", required=True, help="a shipped model, a Hugging Face folder, or a Hub id"
    )
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--prompt", metavar="TEXT", help="the text")
    text.add_argument(
        "--tokens",
        type=existing_file("--tokens"),
        metavar="FILE",
        help="token ids, taken as they are: JSON list, or .npy",
    )
    add_bos_option(
        parser,
        "before the text, unless it begins with it (it is put as the model's family is used to; the documentation has the rule)",
    )
    parser.add_argument("--tokenizer", metavar="TOKENIZER", help="where the tokenizer is, if not with the model")
    parser.add_argument("--revision", metavar="NAME", help="which revision of a Hub model")


def tokens_of(arguments: argparse.Namespace) -> jax.Array:
    """Encodes the text, as the options of `add_text_options` name it; says how many, and whether a token was put before the text."""
    if arguments.prompt is None:
        check_pretrained(arguments.model, arguments.revision)
        return jnp.asarray(ids_of(arguments, rank=1), jnp.int32)
    tokenizer = tokenizer_of(arguments)
    text = _typed(arguments.prompt)
    ids, plain = encode_text(tokenizer, text, bos=arguments.bos), encode_text(tokenizer, text, bos=False)
    if not plain:
        raise ValueError("--prompt is empty. Expected a text.")
    begins = plain[0] == tokenizer.bos_token_id
    put = f"{tokenizer.bos_token} put before the text" if len(ids) > len(plain) else "the text as it stands"
    note(f"{counted(len(ids), 'token')}, {put}{f', which begins with {tokenizer.bos_token}' if begins else ''}")
    check_beginnings(tokenizer, [ids])
    return jnp.asarray(ids, jnp.int32)


def encode_text(tokenizer: Any, text: str, *, bos: bool | None = None) -> list[int]:
    """Encodes a text: its token ids behind what `beginning` says, which is not put before a text that begins with it."""
    return begun(tokenizer.encode(text, add_special_tokens=False), beginning(tokenizer, bos))


def _typed(text: str) -> str:
    """Decodes text as it was typed, in UTF-8, where the locale knows no such letters and Python has escaped its bytes."""
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("--prompt is not text in UTF-8.") from None


def ids_of(arguments: argparse.Namespace, *, rank: int) -> np.ndarray:
    """Reads token ids out of the `.npy` file or JSON list of `--tokens`: of one prompt (`rank=1`), or of several alike (`rank=2`)."""
    if arguments.bos is not None:
        raise ValueError("--bos and --no-bos are about text; token ids are taken as they are. Leave the option out.")
    path = arguments.tokens
    with path.open("rb") as file:
        stored = file.read(6) == b"\x93NUMPY"
    text = "" if stored else read_text(path, expected="a JSON list of token ids, or a .npy file of them")
    try:
        ids = np.load(path) if stored else np.asarray(json.loads(text))
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is neither a JSON list of token ids nor a .npy file of them ({error}).") from None
    if ids.ndim != rank or not np.issubdtype(ids.dtype, np.integer):
        wanted, give = ("one list of", "one prompt") if rank == 1 else ("lists of", "several, of one length")
        raise ValueError(f"{path}: expected {wanted} token ids, got {ids.dtype}{list(ids.shape)}. Give {give}.")
    note(f"{path.name}: {' x '.join(map(str, ids.shape))} tokens, as they stand in the file")
    return ids


def tokenizer_of(arguments: argparse.Namespace) -> Any:
    """Loads the tokenizer that was named, or the model's own at its revision. That there is such a model is looked at first: without one
    there is no tokenizer either, and what is missing is the model.
    """
    check_pretrained(arguments.model, arguments.revision)
    if arguments.tokenizer:
        return with_family(load_text_tokenizer(arguments.tokenizer), arguments.model, arguments.revision)
    return load_text_tokenizer(arguments.model, revision=arguments.revision)


def add_circuit_options(parser: argparse.ArgumentParser, *, node_threshold: float, edge_threshold: float) -> None:
    """Adds the options of every command that finds a circuit."""
    kept = {"node": ("|effect|", node_threshold), "edge": ("|weight|", edge_threshold)}
    for what, (strength, default) in kept.items():
        option = f"--{what}-threshold"
        about = f"keep {what}s with {strength} above this ({default:g})"
        parser.add_argument(option, type=threshold(option), metavar="X", default=default, help=about)
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="integrated",
        help="how node effects are found: by integrated gradients, by one gradient, or by a run for each (%(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=count("--steps", "gradients to integrate"),
        default=10,
        metavar="N",
        help="how many gradients are integrated (%(default)s)",
    )
    parser.add_argument(
        "--edges", choices=("clean", "integrated"), default="clean", help="where edges are taken (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def show_circuit(circuit: Circuit, *, most: int = 12) -> None:
    """Prints the strongest nodes and edges."""
    meta, notes = circuit.meta, circuit.meta.annotations or {}
    print(
        f"{counted(len(circuit.nodes), 'node')}, {counted(len(circuit.edges), 'edge')}; "
        f"metric {meta.clean_metric:z.3f}, effect {meta.total_effect:+z.3f}"
    )
    if shares := meta.completeness:
        ends = dict.fromkeys(f"{share:.1%}" for share in (min(shares.values()), max(shares.values())))
        sums = f"node effects sum to {' to '.join(ends)} of the total effect at the {counted(len(shares), 'residual site')}"
        integrated = meta.method is not None and meta.method["name"] == "IntegratedGradients"
        print(f"check: {sums}" if integrated else f"note: {sums}; by this method they need not")
    if certificate := meta.certificate:
        print(
            f"check: relative error of edges {certificate['error']:z.1e} in {counted(certificate['probes'], 'probe')} against float64 "
            f"(limit {certificate['limit']:z.0e})"
        )
    if not len(circuit.edges):
        print(f"no edge has |weight| above {meta.edge_threshold:g}; the largest is {meta.largest_edge:z.3g}")
    if set(circuit.nodes["kind"]) == {"error"}:
        print("all nodes are errors: these dictionaries say little of what matters here")
    print("\nstrongest nodes")
    for node in circuit.node_rows()[:most]:
        print(f"  {node.effect:+z8.3f}  {node.node:<38} {note_of(notes, node)}")
    print("\nstrongest edges")
    for edge in circuit.edge_rows()[:most]:
        print(f"  {edge.weight:+z8.3f}  {edge.source:<38} -> {edge.target}")


def find_circuit(
    arguments: argparse.Namespace,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    prompts: Prompts,
    tokenizer: Any,
    *,
    positions: bool,
    thresholds: str = "averages",
    batch_size: int | None = None,
) -> Circuit:
    """Finds the circuit of the prompts with a progress bar, and annotates it with their words."""
    with progress_bar() as progress:
        circuit = discover(
            model,
            saes,
            prompts.clean,
            prompts.corrupt,
            prompts.metric(),
            node_threshold=arguments.node_threshold,
            edge_threshold=arguments.edge_threshold,
            method=METHODS[arguments.method](arguments.steps),
            aggregate="none" if positions else "sum",
            edges=arguments.edges,
            thresholds=thresholds,
            batch_size=batch_size,
            mask=prompts.mask,
            progress=progress,
        )
    if positions:
        circuit = circuit.annotate(tokens=[tokenizer.decode([int(token)]) for token in np.asarray(prompts.clean)[0]])
    sides = [prompts.clean, prompts.corrupt]
    circuit = annotated(circuit, model, saes, sides, tokenizer, prompts.mask)
    begin = {side[0] for tokens in sides for side in np.asarray(tokens).tolist()}
    return circuit.annotate(bos=begin == {tokenizer.bos_token_id})


def given_again(arguments: argparse.Namespace) -> list[str]:
    """The options of `add_prompt_options` by which another command gets the same model, dictionaries and prompts."""
    values = {name: getattr(arguments, name) for name in ("model", "saes", "prompts", "tokenizer", "revision", "limit")}
    words = [word for name, value in values.items() if value is not None for word in (f"--{name}", str(value))]
    flags = ("skip_unusable", "first_answer")
    words += [f"--{name.replace('_', '-')}" for name in flags if getattr(arguments, name)]
    return words + ({True: ["--bos"], False: ["--no-bos"]}.get(arguments.bos, []))


def deliver(circuit: Circuit, arguments: argparse.Namespace, again: list[str]) -> None:
    """Saves the circuit, draws it, and says what was found, where it is, and how to go on; `again` are the options of the same prompts."""
    circuit.save(arguments.out)
    picture = arguments.out / "circuit.html"
    circuit.to_html(picture)
    if arguments.json:
        sizes = {"nodes": len(circuit.nodes), "edges": len(circuit.edges)}
        meta = {key: value for key, value in circuit.meta.items() if key not in ("annotations", "latents")}
        say_json({**sizes, **meta, "folder": str(arguments.out), "picture": str(picture)})
    else:
        show_circuit(circuit)
        print(f"\nsaved to {arguments.out}, drawn in {picture}: open it in a browser.")
        carried = shlex.join(["jaxcirc", "evaluate", "--circuit", str(arguments.out), *again])
        print(f"How much of the behaviour it carries (lower thresholds carry more):\n  {carried}")
