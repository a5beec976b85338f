"""`jaxcirc attribute`: a verb over a file of prompts of any length, into a folder of tables."""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from .._words import counted
from ..attribution import AtPStar
from ..interop import check_saes, load_saes
from ..jobs import AbstractEngine, AbstractVerb, attribute, Cluster, JobReport, join, Part, Ray, VERBS
from ..lens import JacobianLens
from ._attributed import add_derivatives_option
from ._common import add_bos_option, load_model, METHODS, note, say_json, Subparsers, tokenizer_of
from ._loading import add_model_option, add_tokenizer_options
from ._options import count, existing_file, new_folder, part_of, threshold


EVERY = 5.0  # seconds between lines of progress
HEADS = {"atp-star": lambda steps: AtPStar(), "gradient": METHODS["gradient"], "patching": METHODS["patching"]}


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "attribute",
        help="a verb over millions of prompts, into tables; goes on where it was stopped",
        description="Runs a verb over every prompt pair of a file, and writes what it finds as parquet tables, each whole at any moment. "
        "Stopped or killed, the same command goes on from there.",
        epilog="example: jaxcirc attribute --model tiny-gpt2 --saes tiny-gpt2 --prompts prompts.jsonl --verb node-effects --out effects",
    )
    add_model_option(parser)
    parser.add_argument(
        "--saes",
        metavar="DICTIONARIES",
        help="a shipped model's name, or a folder of dictionaries, for verbs over their nodes",
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        required=True,
        type=_existing,
        help="file of prompt pairs: JSON lines, parquet, or a folder that save_to_disk of datasets wrote",
    )
    parser.add_argument("--verb", choices=VERBS, default="node-effects", help="what is computed (%(default)s)")
    parser.add_argument(
        "--method",
        choices=dict.fromkeys((*METHODS, *HEADS)),
        default="gradient",
        help="how effects of nodes or heads are found (%(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=count("--steps", "gradients to integrate"),
        metavar="N",
        help="how many gradients are integrated",
    )
    add_derivatives_option(parser, of=", of --verb edge-attribution")
    for what, default in (("node", 0.1), ("edge", 0.02)):
        option = f"--{what}-threshold"
        about = f"keep {what}s with |effect| above this ({default:g})"
        parser.add_argument(option, type=threshold(option), metavar="X", help=about)
    parser.add_argument("--lens", type=existing_file("--lens"), metavar="FILE", help="the lens of --verb lens")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="weights as they are, not processed as in publications: of direct effects and self-repair",
    )
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, type=new_folder("--out"), help="folder for the tables"
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first row that cannot be used, before writing"
    )
    add_tokenizer_options(parser)
    parser.add_argument("--first-answer", action="store_true", help="of several answers of a prompt take the first")
    add_bos_option(parser, "before each prompt (it is put where the model's tokenizer puts it by itself)")
    parser.add_argument(
        "--batch-size",
        type=count("--batch-size", "prompt pairs are run together"),
        default=64,
        metavar="N",
        help="prompt pairs that are run together (%(default)s)",
    )
    parser.add_argument(
        "--shard-lines",
        type=count("--shard-lines", "lines a table is of"),
        default=1024,
        metavar="N",
        help="lines that a table is of (%(default)s)",
    )
    parser.add_argument(
        "--devices-per-copy",
        type=count("--devices-per-copy", "devices have one copy of the dictionaries"),
        metavar="N",
        help="lay the dictionaries' width over so many devices (as few as hold it)",
    )
    _add_drivers(parser)
    parser.set_defaults(command=attribute_file)


def _add_drivers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shard",
        type=part_of("--shard"),
        metavar="I/N",
        help="do every N-th table from the I-th on, counted from 0, beside other processes",
    )
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="divide the tables among the processes that Slurm, Kubernetes, Open MPI or a TPU pod has started",
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="the same, where nothing says who they are")
    parser.add_argument(
        "--num-processes", type=count("--num-processes", "processes there are"), metavar="N", help="with --coordinator"
    )
    parser.add_argument(
        "--process-id",
        type=count("--process-id", "processes come before this one", least=0),
        metavar="I",
        help="with --coordinator, from 0",
    )
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="where it is computed (%(default)s)"
    )
    parser.add_argument(
        "--address", metavar="HOST:PORT", help="of a Ray cluster; without, Ray finds one or starts one here"
    )
    parser.add_argument(
        "--actors",
        type=count("--actors", "Ray actors compute"),
        metavar="N",
        help="how many Ray actors compute (one a device)",
    )


def attribute_file(arguments: argparse.Namespace) -> int:
    verb = _verb(arguments)
    part, engine = _part_of(arguments), _engine(arguments)
    if verb.takes_dictionaries and arguments.saes is None:
        raise ValueError(f"--verb {verb.name} is over the nodes of dictionaries. Name some by --saes.")
    if verb.takes_dictionaries:
        check_saes(arguments.saes)
    tokenizer = tokenizer_of(arguments)
    saes = load_saes(arguments.saes) if verb.takes_dictionaries else {}
    found = attribute(
        load_model(arguments),
        saes,
        tokenizer,
        arguments.prompts,
        arguments.out,
        verb,
        batch_size=arguments.batch_size,
        shard_lines=arguments.shard_lines,
        bos=arguments.bos,
        first_answer=arguments.first_answer,
        strict=arguments.strict,
        part=part,
        devices_per_copy=arguments.devices_per_copy,
        engine=engine,
        progress=_Lines(),
    )
    report = found.report
    counted_up = {name: value for name, value in dataclasses.asdict(report).items() if name != "seconds"}
    said = {**counted_up, "rate": report.rate, "out": str(found.out)}
    if arguments.json:
        say_json(said)
        return 0
    skipped = f", {counted(report.skipped, 'line')} skipped (skipped.jsonl says why)" if report.skipped else ""
    print(f"{counted(report.rows, 'row')} of {counted(report.done, 'line')} in {found.out}{skipped}.")
    return 0


def _verb(arguments: argparse.Namespace) -> AbstractVerb:
    """Makes the verb of the options that it has. **Raises:** `ValueError` for one that says nothing of it."""
    kind = VERBS[arguments.verb]
    has = {field.name for field in dataclasses.fields(kind)}
    given: dict[str, Any] = {}
    for name in ("node_threshold", "edge_threshold", "steps", "derivatives"):
        if (value := getattr(arguments, name)) is None:
            continue
        if name not in has and not (name == "steps" and arguments.method == "integrated"):
            raise ValueError(f"--{name.replace('_', '-')} says nothing of --verb {arguments.verb}. Leave it out.")
        if name in has:
            given[name] = value
    if "method" in has:
        methods = HEADS if arguments.verb == "heads" else METHODS
        if arguments.method not in methods:
            raise ValueError(f"--method of --verb {arguments.verb} is {' or '.join(methods)}; got {arguments.method}.")
        given["method"] = methods[arguments.method](arguments.steps or 10)
    elif arguments.method != "gradient":
        raise ValueError(f"--method says nothing of --verb {arguments.verb}. Leave it out.")
    if (arguments.lens is None) != ("lens" not in has):
        raise ValueError("--lens and --verb lens go together. Give both, or neither.")
    if arguments.lens is not None:
        given["lens"] = JacobianLens.load(arguments.lens)
    if arguments.raw:
        if "processed" not in has:
            raise ValueError(f"--raw says nothing of --verb {arguments.verb}. Leave it out.")
        given["processed"] = False
    return kind(**given)


def _part_of(arguments: argparse.Namespace) -> Part:
    """Which tables are this process': all, those of `--shard`, or by its number among the processes that are started together."""
    flags = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    together = arguments.distributed or any(flag is not None for flag in flags)
    if arguments.shard is not None:
        if together or arguments.engine == "ray":
            raise ValueError(
                "--shard says which tables are done here; --distributed, --coordinator and --engine ray divide them. Give one."
            )
        return arguments.shard
    if not together:
        return Part()
    if arguments.engine == "ray":
        raise ValueError("--engine ray divides the tables by itself. Leave out --distributed and --coordinator.")
    if any(flag is not None for flag in flags) and None in flags:
        raise ValueError(
            "--coordinator, --num-processes and --process-id go together. Give all three, or --distributed alone."
        )
    try:
        part = join(Cluster(*flags) if arguments.coordinator else None)
    except ValueError as error:
        raise ValueError(
            f"{error} By --coordinator, --num-processes and --process-id; or give --shard alone."
        ) from None
    note(f"process {part.number} of {part.of}")
    return part


def _engine(arguments: argparse.Namespace) -> AbstractEngine | None:
    if arguments.engine == "local":
        if arguments.address or arguments.actors:
            raise ValueError("--address and --actors are of --engine ray. Leave them out, or give it.")
        return None
    return Ray(arguments.address, actors=arguments.actors)


class _Lines:
    """Says on standard error how far the job is: a line now and then."""

    def __init__(self) -> None:
        self.said, self.done = time.monotonic(), -1

    def __call__(self, report: JobReport) -> None:
        now = time.monotonic()
        ended = report.done == report.lines
        if (now - self.said < EVERY and not ended) or (ended and report.done == self.done):
            return
        self.said, self.done = now, report.done
        left = "" if report.remaining is None or ended else f", {_duration(report.remaining)} to go"
        note(
            f"{report.done} of {report.lines} lines; {report.rate:z.1f} prompts a second, computing {report.busy:z.0%} of the time{left}"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"--prompts {path}: No such file or folder.")
    return path
