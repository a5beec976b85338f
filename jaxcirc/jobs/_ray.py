"""The driver on a Ray cluster: Ray Data over the numbers of shards, with a pool of actors as the function.

Each actor holds the weights and its programs, and writes its shards itself, into a folder that all hosts see; only counts come back. An
actor that dies is started anew by Ray Data, and its shard given to whoever is free.
"""

import contextlib
import dataclasses
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from .._checks import check_optional_count
from ..models import Transformer
from ._devices import copies, mesh_for
from ._engine import AbstractEngine, Crew, Work
from ._job import Job
from ._shards import Shard
from ._source import AbstractSource
from ._store import Counts, write_shard
from ._verbs import Saes


# Settings of JAX that numbers and time depend on; an actor has the driver's.
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
PATIENCE = 5.0  # seconds in which a cluster has to answer


@dataclasses.dataclass(frozen=True)
class Ray(AbstractEngine):
    """Actors of a Ray cluster, each with one copy of the dictionaries; where the cluster has GPUs, with as many of these as a copy takes.

    **Arguments:**

    - `address`: of the cluster, as `ray.init` takes it; `None` is the one that this program has joined, that the environment names, or that
      was started last on this host, or else a new one; `"local"` is a new one in any case.
    - `actors`: how many; by default as many as there are devices for.

    It takes the extra `ray`. Prompts and the folder of results have to be where all hosts see them.
    """

    address: str | None = None
    actors: int | None = None

    def __post_init__(self):
        check_optional_count("Ray: actors", "actors compute", self.actors)

    @contextlib.contextmanager
    def started(self, model: Transformer, saes: Saes, devices_per_copy: int | None) -> Iterator[Crew]:
        ray = _ray()
        joined = not ray.is_initialized()
        if joined:
            _join(ray, self.address)
        try:
            each, there_are = devices_per_copy or 1, ray.cluster_resources()
            gpus = int(there_are.get("GPU", 0))
            hosts = sum("CPU" in node["Resources"] for node in ray.nodes() if node["Alive"])
            actors = self.actors or (gpus // each if gpus else hosts) or 1
            run = lambda work: _run(ray, work, actors, each, gpus > 0)
            yield Crew("gpu" if gpus else jax.default_backend(), actors * each, each, actors, run)
        finally:
            if joined:
                ray.shutdown()


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise ImportError(
            "Ray is not installed: pip install 'jaxcirc[ray]'. Without it, leave the engine out."
        ) from None
    return ray


def _join(ray: Any, address: str | None) -> None:
    here = {"include_dashboard": False} if address in (None, "local") else {}
    try:
        _check_there(address)
        # That JAX has threads matters little to what Ray forks, which runs another program at once.
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **here)
    except (OSError, ValueError, RuntimeError) as error:
        where = "can be started here" if address is None else f"is at {address}"
        raise ValueError(
            f"No Ray cluster {where} ({str(error).strip().partition(chr(10))[0]}). Start one on some host, by "
            "ray start; to join one that asks for tokens, as newer Rays do, set RAY_AUTH_MODE to token."
        ) from None


def _check_there(address: str | None) -> None:
    """OSError if nobody listens at a host and a port: Ray would ask again for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), PATIENCE).close()


def _run(ray: Any, work: Work, actors: int, each: int, gpus: bool) -> None:
    settings = {name: jax.config.values[name] for name in _SETTINGS}
    given = ray.put((work.job, jax.device_get(work.model), jax.device_get(dict(work.saes)), work.source))
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards = {shard.number: shard for shard in work.shards}
    numbers = ray.data.from_items([{"shard": number} for number in shards], override_num_blocks=len(shards))
    # The reference in a list, as a bare one would be fetched by whoever passes it on.
    about = {"given": [given], "shards": shards, "out": str(work.out.absolute()), "each": each, "settings": settings}
    done = numbers.map_batches(
        _Actor,
        batch_size=1,
        fn_constructor_kwargs=about,
        compute=ray.data.ActorPoolStrategy(size=actors),
        **({"num_gpus": each} if gpus else {"num_cpus": 1}),
    )
    for row in done.iter_rows():
        work.clock.computed(row["prompts"], row["seconds"])
        work.clock.finished(Counts(*(int(row[name]) for name in Counts._fields)))
        work.watch(work.clock.report())


class _Actor:
    """Computes and writes shards by their numbers."""

    def __init__(self, given: list[Any], shards: dict[int, Shard], out: str, each: int, settings: dict[str, Any]):
        import ray

        for name, value in settings.items():
            jax.config.update(name, value)
        job, model, saes, source = ray.get(given[0])
        self.job: Job = job
        self.source: AbstractSource = source
        self.shards, self.out = shards, Path(out)
        self.copy = copies(mesh_for(model, saes, each), model, saes)[0]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows: dict[str, list[Any]] = {name: [] for name in ("seconds", *Counts._fields)}
        for number in batch["shard"]:
            shard, began = self.shards[int(number)], time.monotonic()
            (records,) = self.source.ranges([shard.lines])
            found = self.job.shard(self.copy, shard, *self.job.reader.read(records))
            counts = write_shard(self.out, found)
            rows["seconds"].append(time.monotonic() - began)
            for name, value in counts._asdict().items():
                rows[name].append(value)
        return rows
