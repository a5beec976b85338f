"""Measures a row: equality, then every variant once, then the best ones side by side, then memory."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from . import peers
from ._memory import OURS, peak_bytes
from ._row import Rival, Row
from ._settings import limit
from ._timing import check_equal, first_call, Run, side_by_side, spread


Progress = Callable[[str], None]


class Settings(NamedTuple):
    """How rows are measured: `size` is a key of their sizes; `memory` starts processes; `compiled` tries `torch.compile`."""

    size: str
    repeats: int
    precision: str
    memory: bool
    compiled: bool
    rate: float  # of matrix products, operations a second


def measure(name: str, row: Row, settings: Settings, progress: Progress) -> dict[str, Any]:
    """All numbers of a row. **Raises:** `Unequal` if a side computes something else."""
    if settings.size != "quick":
        jax.clear_caches()  # so that compilation is measured whatever ran before
    run = row.prepare()
    result, first = first_call(run)
    ours = row.numbers(result)
    error = check_equal(f"ours against {row.against}", *row.check(ours), limit(settings.precision))
    progress(f"{name}: equals {row.against}, relative error {error:.1e}")
    rivals, runs = [], {OURS: run}
    for rival in row.rivals:
        record, best = _choose(rival, ours, settings, lambda said: progress(f"{name}: {said}"))
        rivals.append(record)
        if best is not None:
            runs[rival.name] = best
    del result, ours
    times = side_by_side(runs, settings.repeats)
    for record in rivals:
        if record["name"] in times:
            _compare(record, times[OURS], times[record["name"]])
    took = spread(times[OURS])
    shares = {f"{kind}_share": work / took["median"] / settings.rate for kind, work in row.work.items()}
    numbers = {
        "name": name,
        "what": row.what,
        "sizes": dict(row.sizes),
        "ours": {"seconds": took, "compile_seconds": max(0.0, first - took["median"]), "error_against_jvp": error},
        "work": {**row.work, **shares},
        "rivals": rivals,
    }
    if settings.memory:
        _add_memory(name, numbers, row, settings)
    for record in rivals:
        progress(f"{name}: {_line(numbers, record)}")
    return numbers


def _choose(
    rival: Rival, ours: np.ndarray, settings: Settings, progress: Progress
) -> tuple[dict[str, Any], Run | None]:
    """Tries the variants on a part of the work, and returns what was found with a run of the best, whose result has been compared."""
    record: dict[str, Any] = {
        "name": rival.name,
        "unit": rival.unit,
        "all": rival.all,
        "timed": rival.timed,
        "tried": {},
    }
    if rival.in_torch and peers.missing():
        progress(f"{rival.name} is left out: {peers.missing()}")
        return {**record, "skipped": peers.missing()}, None
    for variant in rival.variants:
        record["tried"][variant] = _try(rival, variant, ours, settings, progress)
    done = {variant: tried["seconds"] for variant, tried in record["tried"].items() if "seconds" in tried}
    if not done:
        reasons = {tried["skipped"] for tried in record["tried"].values()}
        return {**record, "skipped": "; ".join(sorted(reasons))}, None
    best = min(done, key=lambda variant: done[variant])
    run = rival.prepare(best, rival.timed)
    result, _ = first_call(run)
    record |= {"variant": best, "tried_with": rival.tried, "error": None}
    if rival.expected is not None:
        want = rival.expected(ours, best, rival.timed)
        record["error"] = check_equal(f"ours against {rival.name}, {best}", want, result, limit(settings.precision))
        progress(f"equals {rival.name}, {best}, relative error {record['error']:.1e}")
    return record, run


def _try(rival: Rival, variant: str, ours: np.ndarray, settings: Settings, progress: Progress) -> dict[str, Any]:
    if variant.startswith("compiled") and not settings.compiled:
        return {"skipped": "left out"}
    try:
        run = rival.prepare(variant, rival.tried)
        result, first = first_call(run)
    except Exception as error:
        if not variant.startswith("compiled"):
            raise
        return {"skipped": f"torch.compile failed: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
    tried: dict[str, Any] = {"first_call_seconds": first}
    if rival.expected is not None:
        want = rival.expected(ours, variant, rival.tried)
        what = f"ours against {rival.name}, {variant}"
        tried["error"] = check_equal(what, want, result, limit(settings.precision))
    del result
    tried["seconds"] = min(side_by_side({variant: run}, 2)[variant])
    progress(f"{rival.name}, {variant}: {tried['seconds']:.3g} s for {rival.tried} of {rival.all} {rival.unit}")
    return tried


def _compare(record: dict[str, Any], ours: list[float], theirs: list[float]) -> None:
    """Ratios of runs of one round; the rival's times scaled from the part that was timed to all."""
    scale = record["all"] / record["timed"]
    record["measured_seconds"], record["scale"] = spread(theirs), scale
    record["seconds"] = spread([scale * each for each in theirs])
    record["ratio"] = spread([scale * b / a for a, b in zip(ours, theirs, strict=True)])
    if record["tried_with"] < record["timed"]:
        each = {
            record["tried_with"]: record["tried"][record["variant"]]["seconds"],
            record["timed"]: statistics.median(theirs),
        }
        record["linearity"] = {f"seconds a unit, of {amount}": took / amount for amount, took in each.items()}


def _add_memory(name: str, numbers: dict[str, Any], row: Row, settings: Settings) -> None:
    peak = lambda *side: peak_bytes(name, settings.size, settings.precision, *side)
    numbers["ours"]["peak_bytes"] = peak(OURS)
    for rival, record in zip(row.rivals, numbers["rivals"], strict=True):
        if rival.expected is not None and "variant" in record and not record["variant"].startswith("compiled"):
            record["peak_bytes"] = peak(rival.name, record["variant"], rival.timed)


def _line(numbers: dict[str, Any], record: dict[str, Any]) -> str:
    ours = numbers["ours"]["seconds"]["median"]
    if "ratio" not in record:
        return f"{ours:.3g} s"
    return f"{ours:.3g} s; {record['name']} {record['seconds']['median']:.3g} s, {record['ratio']['median']:.3g} times as long"
