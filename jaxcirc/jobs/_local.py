"""The driver of one process: a thread that reads and encodes, one a copy of the model that computes, and one that writes. On a CPU with
more devices than cores copies take turns.

While a shard is written the next is computed, and the prompts of the one after it are made; of each there is no more than that in memory.
"""

import queue
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from .._target import at_work
from ._devices import Copy
from ._job import Job
from ._progress import Clock, Watcher
from ._shards import Shard
from ._source import AbstractSource
from ._store import Counts, Found, write_shard


UNWRITTEN = 2  # shards that may wait for the disk, before nothing more is computed
HEARTBEAT = 1.0  # seconds between reports while nothing else happens


def run_local(
    job: Job,
    copies: Sequence[Copy],
    source: AbstractSource,
    shards: Sequence[Shard],
    out: Path,
    clock: Clock,
    report: Watcher,
) -> None:
    """Computes shards, and writes each to `out`. An error in one of the threads ends the others after their batch, and is raised here."""
    stop, free, many = threading.Event(), queue.SimpleQueue(), at_work(len(copies))
    for copy in copies:
        free.put(copy)

    def read():
        return job.reader.read(next(ranges, ()))

    def compute(shard: Shard, rows, skipped) -> Found:
        copy = free.get()
        try:
            with clock.computing():
                return job.shard(copy, shard, rows, skipped, clock.computed, stop)
        finally:
            free.put(copy)

    pool = lambda size, name: ThreadPoolExecutor(size, thread_name_prefix=f"jaxcirc-{name}")
    with pool(1, "read") as readers, pool(many, "compute") as computers, pool(1, "write") as writers:
        ranges = source.ranges(shard.lines for shard in shards)
        computing: set[Future[Found]] = set()
        writing: deque[Future[Counts]] = deque()
        try:
            reading = readers.submit(read)
            for shard in shards:
                prompts = reading.result()
                reading = readers.submit(read)
                computing.add(computers.submit(compute, shard, *prompts))
                del prompts
                while len(computing) > many:  # one is ready for whoever is free first
                    _collect(computing, writing, writers, out, clock, report)
            while computing:
                _collect(computing, writing, writers, out, clock, report)
            while writing:
                _written(writing, clock, report)
        except BaseException:
            stop.set()
            for future in computing:
                future.cancel()
            raise


def _collect(computing, writing, writers, out: Path, clock: Clock, report: Watcher) -> None:
    """Waits for a shard that is computed, and gives it to be written."""
    done, _ = wait(computing, HEARTBEAT, FIRST_COMPLETED)
    for future in done:
        computing.remove(future)
        writing.append(writers.submit(write_shard, out, future.result()))
    while writing and (len(writing) > UNWRITTEN or writing[0].done()):
        _written(writing, clock, report)
    if not done:
        report(clock.report())


def _written(writing, clock: Clock, report: Watcher) -> None:
    clock.finished(writing.popleft().result())
    report(clock.report())
