"""Several processes on one folder, each with a number of its own: what `jax.distributed` is for here.

Nothing is computed across processes. They meet once, to learn who they are and which devices are whose, and part again, before any work: a
process that dies later is then nobody's concern, where JAX would else end all others with it.
"""

from typing import NamedTuple

import jax

from ._shards import Part


class Cluster(NamedTuple):
    """Who the processes are, where no scheduler says it.

    **Attributes:** - `coordinator`: `HOST:PORT` of the process 0. - `processes`: how many there are. - `process`: which one this is.
    """

    coordinator: str
    processes: int
    process: int


def join(cluster: Cluster | None = None) -> Part:
    """Meets the other processes; before anything else that asks JAX for a device.

    **Arguments:** - `cluster`: `None` for what Slurm, Kubernetes, Open MPI or a TPU pod says.

    **Returns:** this process' part of the work.

    **Raises:** `ValueError` if nothing says who the processes are; `RuntimeError` if they do not meet.
    """
    try:
        if cluster is None:
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(cluster.coordinator, cluster.processes, cluster.process)
    except ValueError as error:
        raise ValueError(
            f"Nothing says which processes there are ({error}). Start them by Slurm, Kubernetes, Open MPI or on a TPU pod; or tell each "
            "who the coordinator is, how many there are and which it is."
        ) from None
    part = Part(
        jax.process_index(), jax.process_count()
    )  # asks for devices, so that each process knows its own from here on
    jax.distributed.shutdown()
    return part
