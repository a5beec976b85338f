"""What fits: sizes of results against the memory there is."""

import math
import os

import numpy as np

from .._target import running_device


def available() -> int | None:
    """Free memory of the default device in bytes, `None` where it is not known."""
    device = running_device()
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return available_on_host() if device.platform == "cpu" else None


def free_memory() -> int:
    """Free memory of the default device in bytes; half a gigabyte where it is not known."""
    return available() or 2**29


def available_on_host() -> int | None:
    """Free memory of the host in bytes, `None` where it is not known."""
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        # What the kernel would free of its file cache is not counted, so this errs on the safe side by little.
        return _linux_available() or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _linux_available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="utf-8") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def check_fits(what: str, shape: tuple[int, ...], dtype, instead: str, *, on_host: bool = False) -> None:
    """ValueError if a result of `shape` is larger than the memory that is free, of the default device or `on_host`."""
    size, free = math.prod(shape) * np.dtype(dtype).itemsize, available_on_host() if on_host else available()
    if free is not None and size > free:
        raise ValueError(
            f"{what} of shape {shape} takes {_readable(size)}, and {_readable(free)} of memory are free. {instead}"
        )


def _readable(size: int | float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
