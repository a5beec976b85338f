"""What a newcomer waits for: `python -m benchmarks.startup`.

Whole processes, each in a fresh interpreter: what `import jaxcirc` adds to `import jax`, and `jaxcirc demo` with an empty compilation
cache and with a full one. Prints a table and writes `benchmarks/results/startup.json`.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax


RESULTS = Path(__file__).parent / "results"


def seconds(code: list[str], cwd: str, cache: str) -> float:
    """The wall time of one process."""
    began = time.monotonic()
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(
        [sys.executable, *code],
        cwd=cwd,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    return time.monotonic() - began


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = lambda *code: seconds(list(code), folder, folder)
        run("-c", "import jaxcirc")  # warm-up: byte code and the file cache
        pairs = [(run("-c", "import jax"), run("-c", "import jaxcirc")) for _ in range(5)]
        demo = ("-m", "jaxcirc", "demo")
        times = {
            "import jax": statistics.median(a for a, _ in pairs),
            "import jaxcirc adds": statistics.median(b - a for a, b in pairs),
            "jaxcirc demo, empty cache": run(*demo),
            "jaxcirc demo, full cache": statistics.median(run(*demo) for _ in range(3)),
        }
    about = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
    }
    for name, value in times.items():
        print(f"{name:<28} {value:6.2f} s")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "startup.json").write_text(
        json.dumps({**about, "seconds": {k: round(v, 2) for k, v in times.items()}}, indent=1) + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
