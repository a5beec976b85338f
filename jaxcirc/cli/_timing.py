"""Where a command's time goes: loading, compiling, running, writing."""

import functools
import time
from collections.abc import Iterable

import jax

from .._files import WRITTEN


COMPILED = tuple(
    f"/jax/core/compile/{what}_duration" for what in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)
Span = tuple[float, float]


class Clock:
    """Of one command. Loading lasts until the last model is there, and the compiling and writing in it are counted as such."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.loaded: float | None = None
        self.compiled: list[Span] = []
        self.written: list[Span] = []

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase, and in all: what is none of the other phases is running."""
        now = time.perf_counter()
        compiling, writing = covered(self.compiled), covered(self.written)
        loading = 0.0
        if self.loaded is not None:
            before = [(begin, end) for begin, end in (*self.compiled, *self.written) if end <= self.loaded]
            loading = self.loaded - self.began - covered(before)
        total = now - self.began
        running = max(0.0, total - loading - compiling - writing)
        phases = {"loading": loading, "compiling": compiling, "running": running, "writing": writing, "total": total}
        return {name: round(value, 3) for name, value in phases.items()}

    def __str__(self) -> str:
        seconds = self.seconds()
        phases = ", ".join(f"{name} {value:z.1f}" for name, value in seconds.items() if name != "total")
        return f"{seconds['total']:z.1f} s: {phases}"


def covered(spans: Iterable[Span]) -> float:
    """How long at least one of the spans lasted: tracing a program traces those in it, and threads compile side by side."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


_clock = Clock()


def begin() -> None:
    """A command begins."""
    global _clock
    _listen()
    _clock = Clock()


def loaded() -> None:
    """A model is there."""
    _clock.loaded = time.perf_counter()


def clock() -> Clock:
    """The clock of the command that runs."""
    return _clock


@functools.cache
def _listen() -> None:
    """Once in a process: JAX keeps its listeners."""
    jax.monitoring.register_event_duration_secs_listener(_hear)


def _hear(event: str, duration_secs: float, **kwargs: str | int) -> None:
    now = time.perf_counter()
    if event in COMPILED:
        _clock.compiled.append((now - duration_secs, now))
    elif event == WRITTEN:
        _clock.written.append((now - duration_secs, now))
