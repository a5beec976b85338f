"""One point of a table of growth, of depth or of graphs, in a process of its own: `python -m benchmarks._growth_point VERB SEQ BATCH BLOCKS
WIDTH REPEATS`.
"""

import functools as ft
import json
import sys
from typing import NamedTuple

import jax

from ._alone import alone
from ._depth_verbs import DEPTH_VERBS
from ._graph_verbs import GRAPH_VERBS
from ._growth_verbs import Point, Verb, VERBS
from ._memory import held, settle
from ._plan_verbs import PLAN_VERBS
from ._settings import precise
from ._timing import first_call, no_garbage, seconds


_COMPILED = "/jax/core/compile/backend_compile_duration"


class Measured(NamedTuple):
    """What one point takes: seconds of a later call, and what the first one takes more; how many programs that compiles; and what a later
    call holds at most, beside its inputs.
    """

    seconds: float
    compile_seconds: float
    programs: int
    peak_bytes: int


def measure_alone(verb: str, point: Point, repeats: int) -> Measured:
    """Starts a process for the point. **Raises:** `RuntimeError` with what it said if it fails."""
    done = alone("_growth_point", verb, *point, repeats)
    if done.returncode:
        raise RuntimeError(f"{verb} at {point} failed: {done.stderr.strip().splitlines()[-1:]}")
    return Measured(**json.loads(done.stdout))


def measure(verb: Verb, point: Point, repeats: int) -> Measured:
    """Runs a verb once to compile it, and then again."""
    run = verb.prepare(point)
    jax.clear_caches()  # of what was compiled for the problem
    began = len(_programs())
    result, first = first_call(run)
    count = len(_programs()) - began
    del result
    settle()
    before = held(peak=False)
    with no_garbage():
        least = min(seconds(run) for _ in range(repeats))
    return Measured(least, max(first - least, 0.0), count, max(held(peak=True) - before, 0))


@ft.cache
def _programs() -> list[str]:
    """A list that grows whenever a program is compiled."""
    programs: list[str] = []

    def compiled(event: str, duration_secs: float, **about: str | int) -> None:
        programs.extend([str(about.get("fun_name"))] if event == _COMPILED else [])

    jax.monitoring.register_event_duration_secs_listener(compiled)
    return programs


def main(argv: list[str]) -> int:
    name, *sizes, repeats = argv
    jax.config.update("jax_enable_compilation_cache", False)  # compilation is measured
    with precise("highest"):
        found = measure((VERBS | DEPTH_VERBS | GRAPH_VERBS | PLAN_VERBS)[name], Point(*map(int, sizes)), int(repeats))
    print(json.dumps(found._asdict()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
