"""How much of a study of prompts of many lengths is compiling: `python -m benchmarks.lengths`.

A hundred prompts of ten lengths, those of a length together, through `jc.discover` and `jc.edge_effects`, on random models with
dictionaries at every site; for each model in a process of its own, without programs kept from others. Then the same with other prompts.
What compiling takes is the same on every model, and what running takes grows with it, so the share is of each by itself. Prints a table
and writes `benchmarks/results/lengths.md`.
"""

import argparse
import functools as ft
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.cli._timing import COMPILED, covered

from ._alone import alone
from ._circuits import make_pairs
from ._growth_verbs import make_problem, Point, Problem, strongest_nodes, threshold_of
from ._settings import describe, precise


RESULTS = Path(__file__).parent / "results"
MODELS = ((4, 64), (6, 384), (12, 768))  # blocks and width: as the shipped model, in between, as GPT-2 small
PROGRAM = COMPILED[-1]


class Took(NamedTuple):
    """Seconds in all and of compiling, and how many programs were compiled for each length, those that came first in front."""

    seconds: float
    compiling: float
    programs: list[int]

    @property
    def share(self) -> float:
        return self.compiling / self.seconds


def measure(blocks: int, width: int, lengths: list[int], each: int) -> tuple[Took, Took]:
    """What `each` prompts of each length take, and then as many others."""
    with precise("highest"):
        problem = make_problem(Point(max(lengths), each, blocks, width))
        least = float(np.abs(strongest_nodes(problem).nodes["effect"].to_numpy()).min())
        jax.clear_caches()  # of what was compiled for the problem
        first, second = (_study(problem, lengths, each, least, seed) for seed in (0, 1))
    return first, second


def _study(problem: Problem, lengths: list[int], each: int, least: float, seed: int) -> Took:
    vocabulary, programs, events = problem.model.W_E.shape[0], [], _events()
    events.clear()
    began = time.perf_counter()
    for seq in lengths:
        pairs = make_pairs(each, seq, vocabulary, seed=seed)
        metric = jc.LogitDiff(*(np.full(each, token) for token in (pairs.answer, pairs.foil)))
        given = problem.model, problem.saes, jnp.asarray(pairs.clean), jnp.asarray(pairs.corrupt), metric
        before = _count(events)
        jc.discover(*given, node_threshold=0.5 * least, edge_threshold=0.0)
        nodes = jc.node_effects(*given, method=jc.Gradient())
        jc.edge_effects(*given, nodes, threshold=threshold_of(nodes, each), upstream="selected")
        programs.append(_count(events) - before)
    spans = [(begin, end) for event, begin, end in events if event in COMPILED]
    return Took(time.perf_counter() - began, covered(spans), programs)


@ft.cache
def _events() -> list[tuple[str, float, float]]:
    """A list of all that JAX times, with when it began and ended; it listens from the first call on."""
    events: list[tuple[str, float, float]] = []

    def hear(event: str, duration_secs: float, **about: str | int) -> None:
        now = time.perf_counter()
        events.append((event, now - duration_secs, now))

    jax.monitoring.register_event_duration_secs_listener(hear)
    return events


def _count(events: list[tuple[str, float, float]]) -> int:
    return sum(event == PROGRAM for event, *_ in events)


def table(rows: list[tuple[int, int, tuple[Took, Took]]], lengths: list[int], each: int) -> str:
    machine = describe("highest")
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    half = len(lengths) // 2
    lines = [
        f"{device}, {machine['cores']} cores, {machine['dtype']}, jax {machine['jax']}. {each * len(lengths)} prompts of {len(lengths)} "
        f"lengths, {min(lengths)} to {max(lengths)} tokens, through `discover` and `edge_effects`; latents as in the rows on growth.",
        "",
        f"| blocks | width | share of compiling | programs, first {half} lengths | the other {len(lengths) - half} | with other prompts |",
        "|---|---|---|---|---|---|",
    ]
    for blocks, width, (first, second) in rows:
        programs = f"{sum(first.programs[:half])} | {sum(first.programs[half:])} | {sum(second.programs)}"
        lines.append(f"| {blocks} | {width} | {first.share:.0%} | {programs} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        metavar="BxD",
        default=[f"{b}x{d}" for b, d in MODELS],
        help="blocks x width (%(default)s)",
    )
    add("--lengths", type=int, nargs="+", metavar="T", default=[*range(12, 32, 2)], help="tokens (%(default)s)")
    add("--each", type=int, metavar="N", default=10, help="prompts of a length (%(default)s)")
    add("--out", type=Path, default=RESULTS, help="folder for the table (%(default)s)")
    add("--serve", action="store_true", help=argparse.SUPPRESS)  # the process of one model
    given = parser.parse_args(argv)
    if given.serve:
        jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
        ((blocks, width),) = _sizes(given.models)
        print(json.dumps(measure(blocks, width, given.lengths, given.each)))
        return 0
    order = np.random.default_rng(0).permutation(given.lengths).tolist()  # no length is known to be the longest
    rows = [(*size, _measured_alone(*size, order, given.each)) for size in _sizes(given.models)]
    text = table(rows, given.lengths, given.each)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "lengths.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _sizes(models: list[str]) -> Iterator[tuple[int, int]]:
    for model in models:
        blocks, width = map(int, model.split("x"))
        yield blocks, width


def _measured_alone(blocks: int, width: int, lengths: list[int], each: int) -> tuple[Took, Took]:
    """The same in a process of its own, without kept programs. **Raises:** `RuntimeError` with what it said if it fails."""
    done = alone("lengths", "--serve", "--models", f"{blocks}x{width}", "--lengths", *lengths, "--each", each)
    if done.returncode:
        raise RuntimeError(f"{blocks} blocks of width {width} failed: {done.stderr.strip().splitlines()[-1:]}")
    first, second = json.loads(done.stdout)
    return Took(*first), Took(*second)


if __name__ == "__main__":
    sys.exit(main())
