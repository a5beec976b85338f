"""Peak memory of one side of a row, in a process of its own: `python -m benchmarks._memory ROW SIZE PRECISION SIDE VARIANT AMOUNT`.

What a run adds to what its inputs take: on CPUs the growth of the resident memory, from before the first run to the peak, compilation
included; on GPUs what the allocator had handed out at most, less what it had handed out before.
"""

import contextlib
import ctypes
import gc
import json
import resource
import sys
from pathlib import Path

import jax

from ._alone import alone
from ._row import make_row
from ._settings import precise
from ._timing import wait


OURS = "ours"


def peak_bytes(row: str, size: str, precision: str, side: str, variant: str = "", amount: int = 0) -> int | None:
    """Starts a process for `side`, ours or a rival by name; `None` if it fails."""
    done = alone("_memory", row, size, precision, side, variant, amount)
    return json.loads(done.stdout) if done.returncode == 0 else None


def main(argv: list[str]) -> int:
    name, size, precision, side, variant, amount = argv
    from . import rows as _registered  # noqa: F401  # fills the registry

    row = make_row(name, size)
    with precise(precision):
        if side == OURS:
            run = row.prepare()
        else:
            run = next(rival for rival in row.rivals if rival.name == side).prepare(variant, int(amount))
        settle()
        before = held(peak=False)
        wait(run())
        wait(run())
        print(held(peak=True) - before)
    return 0


def settle() -> None:
    """Gives back what making the inputs has left, and, where Linux does so, counts the peak from here."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def held(*, peak: bool) -> int:
    """Bytes held now, or at the peak so far."""
    if jax.default_backend() == "gpu":
        stats = jax.devices()[0].memory_stats() or {}
        ours = stats.get("peak_bytes_in_use" if peak else "bytes_in_use", 0)
        torch = sys.modules.get("torch")
        theirs = 0 if torch is None else torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        return ours + theirs
    status = Path("/proc/self/status")
    if status.exists():  # getrusage there begins with the peak of the process that started this one
        wanted = "VmHWM:" if peak else "VmRSS:"
        return (
            next(
                int(line.split()[1])
                for line in status.read_text(encoding="utf-8").splitlines()
                if line.startswith(wanted)
            )
            * 1024
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
