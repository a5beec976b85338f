"""For which platform programs are made, and so how large what they do at once is: a core's cache on a CPU, kernels on an accelerator.

It is the platform of the device that will run them: JAX's default device if one is set, else the first of its default backend. A program
that is only made here, to be looked at or exported for another machine, is made under `for_platform`.

Sizes are chosen before a function is traced, and are static arguments of it: so programs for two platforms never share an entry of JAX's
cache. Where a caller jits a function of the library, sizes are those of the time at which it is traced, like every other static value;
JAX traces anew for another default device, and not for another `for_platform`.
"""

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

import jax


PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_chosen: ContextVar[str | None] = ContextVar("jaxcirc.platform", default=None)


@contextlib.contextmanager
def for_platform(platform: str) -> Iterator[None]:
    """Makes programs for another platform, one of `PLATFORMS`, than that of the device that runs here.

    **Raises:** `ValueError` for a platform of another name.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"for_platform: expected one of {', '.join(PLATFORMS)}; got {platform!r}.")
    token = _chosen.set(platform)
    try:
        yield
    finally:
        _chosen.reset(token)


def target_platform() -> str:
    """The platform that programs are made for; of a GPU that is here JAX says only `"gpu"`."""
    return _chosen.get() or running_platform()


def on_cpu() -> bool:
    """Whether programs are made for a CPU."""
    return target_platform() == "cpu"


def running_platform() -> str:
    """The platform of the device that computes here, whatever programs are made for."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def running_device():
    """The device that computes here."""
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    if device is None:
        return jax.devices()[0]
    return jax.devices(device)[0] if isinstance(device, str) else device


def accelerator_memory() -> int:
    """Bytes that the device has which programs are made for, an accelerator; 64 GiB where it does not say, or is not here."""
    return (memory_limit(running_device()) if running_platform() != "cpu" else None) or 2**36


def memory_limit(device) -> int | None:
    """Bytes that a device may hold, `None` where it does not say."""
    return (device.memory_stats() or {}).get("bytes_limit")


def at_work(copies: int) -> int:
    """How many copies of a model work at once: on a host with more devices than cores no more than it has cores, which would else do the
    same with less of each in their caches.
    """
    return min(copies, _cores()) if running_platform() == "cpu" else copies


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
