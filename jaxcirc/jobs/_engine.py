"""Where shards are computed: in this process, or by others that it commands. Each calls `Job.shard`, so all make the same tables."""

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import jax

from ..models import Transformer
from ._devices import copies, mesh_for
from ._job import Job
from ._local import run_local
from ._progress import Clock, Watcher
from ._shards import Shard
from ._source import AbstractSource
from ._verbs import Saes


class Work(NamedTuple):
    """What is to be done: the shards of a source, computed with these weights and written to `out`."""

    job: Job
    model: Transformer
    saes: Saes
    source: AbstractSource
    shards: Sequence[Shard]
    out: Path
    clock: Clock
    watch: Watcher


class Crew(NamedTuple):
    """Who does it: on what `platform`, how many `devices`, how many of them for each copy of the dictionaries, how many copies at work."""

    platform: str
    devices: int
    devices_per_copy: int
    copies: int
    run: Callable[[Work], None]


class AbstractEngine(abc.ABC):
    """A driver of batch jobs."""

    @abc.abstractmethod
    def started(self, model: Transformer, saes: Saes, devices_per_copy: int | None) -> AbstractContextManager[Crew]:
        """Gathers who is to work, until the context ends."""


@dataclasses.dataclass(frozen=True)
class Local(AbstractEngine):
    """This process, on all its devices."""

    @contextlib.contextmanager
    def started(self, model: Transformer, saes: Saes, devices_per_copy: int | None) -> Iterator[Crew]:
        mesh = mesh_for(model, saes, devices_per_copy)
        each, count = mesh.shape["width"], mesh.shape["data"]

        def run(work: Work) -> None:
            placed = copies(mesh, work.model, work.saes)
            run_local(work.job, placed, work.source, work.shards, work.out, work.clock, work.watch)

        yield Crew(jax.default_backend(), jax.device_count(), each, count, run)
