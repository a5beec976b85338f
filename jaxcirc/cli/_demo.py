"""`jaxcirc demo`: the whole of it, on the model that ships."""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from .. import data
from .._files import write_text, writing_file
from .._words import counted
from ..interop import from_pretrained, load_saes
from ..interop._text_tokenizer import load_text_tokenizer
from ._common import add_circuit_options, add_seed_option, deliver, find_circuit, Subparsers
from ._options import count, new_circuit
from ._timing import loaded


MODEL = "tiny-gpt2"


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="find and draw a circuit of the shipped model",
        description="Finds the circuit by which tiny-gpt2 agrees a verb with its subject across a relative clause, and draws it.",
        epilog="example: jaxcirc demo --out my-circuit",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=new_circuit("--out"),
        default="jaxcirc-demo",
        help="folder for the circuit and its prompts (%(default)s)",
    )
    parser.add_argument(
        "--n-prompts",
        type=count("--n-prompts", "prompt pairs are made"),
        default=32,
        metavar="N",
        help="how many prompt pairs are made (%(default)s)",
    )
    add_seed_option(parser)
    add_circuit_options(parser, node_threshold=0.1, edge_threshold=0.02)
    parser.set_defaults(command=demo)


def demo(arguments: argparse.Namespace) -> int:
    model, saes, tokenizer = from_pretrained(MODEL), load_saes(MODEL), load_text_tokenizer(MODEL)
    loaded()
    prompts = data.subject_verb(tokenizer, arguments.n_prompts, kind="rc", seed=arguments.seed)
    if not arguments.json:
        pairs = (prompts.clean, prompts.corrupt, prompts.answer, prompts.foil)
        clean, corrupt, answer, foil = (tokenizer.decode(np.asarray(ids)[0]) for ids in pairs)
        print(f"{MODEL} and its {counted(len(saes), 'dictionary')}; {counted(len(prompts), 'prompt pair')} such as\n")
        print(f"  clean    {clean!r}  expects {answer!r} and not {foil!r}\n  corrupt  {corrupt!r}\n")
    circuit = find_circuit(arguments, model, saes, prompts, tokenizer, positions=True)
    circuit = circuit.annotate(title=f"{MODEL}: the verb agrees with its subject across a relative clause")
    pairs = arguments.out / "prompts.jsonl"
    deliver(circuit, arguments, ["--model", MODEL, "--saes", MODEL, "--prompts", str(pairs)])
    with writing_file(pairs) as aside:
        write_text(aside, "".join(json.dumps(row) + "\n" for row in _rows(prompts, tokenizer)))
    return 0


def _rows(prompts: data.Prompts, tokenizer: Any) -> Iterator[dict[str, str]]:
    """The pairs as a prompts file has them, so that other commands take up the circuit."""
    sides = {
        "clean_prefix": prompts.clean,
        "patch_prefix": prompts.corrupt,
        "clean_answer": prompts.answer,
        "patch_answer": prompts.foil,
    }
    for i in range(len(prompts)):
        yield {name: tokenizer.decode(np.asarray(ids)[i]) for name, ids in sides.items()}
