"""How far a job is, how fast it goes, and what it does with its time."""

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import TypeAlias

from ._store import Counts


@dataclasses.dataclass(frozen=True)
class JobReport:
    """A job at one moment.

    **Attributes:**

    - `lines`: of the prompts that are this process' to do; `done`: of them in shards that are there, `before`: when it began.
    - `prompts`: computed in this run, finished shards or not; `seconds`: since it began computing.
    - `busy`: the share of these seconds in which its devices' threads computed, the rest being spent on waiting for prompts or for files.
    - `used`, `skipped`, `rows`: prompts, lines skipped and rows of the shards that are there.
    """

    lines: int
    done: int
    before: int
    prompts: int
    seconds: float
    busy: float
    used: int
    skipped: int
    rows: int

    @property
    def rate(self) -> float:
        """Prompts a second."""
        return self.prompts / self.seconds if self.seconds else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds that what remains takes at this rate; `None` before anything is known of it."""
        return (self.lines - self.done) / self.rate if self.prompts else None


Watcher: TypeAlias = Callable[[JobReport], None]


class Clock:
    """Counts what several threads do."""

    def __init__(self, lines: int, before: Counts, threads: int):
        self._lines, self._before, self._threads = lines, before, threads
        self._lock, self._began = threading.Lock(), time.monotonic()
        self._counts, self._prompts, self._busy = before, 0, 0.0
        self._since: dict[int, float] = {}

    def computing(self) -> "_Computing":
        """A context in which this thread computes."""
        return _Computing(self)

    def computed(self, prompts: int, seconds: float = 0.0) -> None:
        """So many prompts more; in `seconds`, if another process did it."""
        with self._lock:
            self._prompts += prompts
            self._busy += seconds

    def finished(self, counts: Counts) -> None:
        """A shard is there."""
        with self._lock:
            self._counts = self._counts.plus(counts)

    def report(self) -> JobReport:
        now = time.monotonic()
        with self._lock:
            seconds = now - self._began
            busy = self._busy + sum(now - since for since in self._since.values())
            return JobReport(
                lines=self._lines,
                done=self._counts.lines,
                before=self._before.lines,
                prompts=self._prompts,
                seconds=seconds,
                busy=min(1.0, busy / (seconds * self._threads)) if seconds else 0.0,
                used=self._counts.prompts,
                skipped=self._counts.skipped,
                rows=self._counts.rows,
            )

    def _begin(self) -> None:
        with self._lock:
            self._since[threading.get_ident()] = time.monotonic()

    def _end(self) -> None:
        with self._lock:
            self._busy += time.monotonic() - self._since.pop(threading.get_ident())


class _Computing:
    def __init__(self, clock: Clock):
        self.clock = clock

    def __enter__(self) -> None:
        self.clock._begin()

    def __exit__(self, *error: object) -> None:
        self.clock._end()
