"""What a run is measured under: the precision of matrix products on both sides, and a description of machine and versions."""

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

from . import peers


QUICK_COMPILES = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
PRECISIONS = {"highest": "highest", "tf32": "high"}  # ours -> PyTorch's name


@contextlib.contextmanager
def precise(precision: str) -> Iterator[None]:
    """Float32 matrix products in full (`"highest"`) or as TF32 where the device has it (`"tf32"`), in JAX and in PyTorch."""
    jax_name = "highest" if precision == "highest" else "tensorfloat32"
    with jax.default_matmul_precision(jax_name):
        if peers.missing():
            yield
            return
        import torch

        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(PRECISIONS[precision])
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: at tiny sizes its threads wait for each other, the longer the more else runs."""
    if peers.missing():
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def limit(precision: str) -> float:
    """The relative error up to which two float32 results are equal."""
    return 1e-4 if precision == "highest" or jax.default_backend() == "cpu" else 2e-2


def describe(precision: str) -> dict[str, Any]:
    """Device, dtype, precision, cores and versions."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "dtype": "float32",
        "matmul_precision": precision,
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jaxcirc", "jax", "jaxlib", "torch")},
    }


def _version(name: str) -> str | None:
    if name == "jaxcirc":
        from jaxcirc import __version__

        return __version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def compile_quickly() -> None:
    """Tells XLA, where it has not begun, and processes that are started, not to optimise; once, for programs are kept by their flags."""
    given = os.environ.get("XLA_FLAGS", "")
    if QUICK_COMPILES not in given:
        os.environ["XLA_FLAGS"] = f"{QUICK_COMPILES} {given}".strip()
