"""A module of the benchmarks as a process of its own, wherever the benchmarks lie."""

import os
import subprocess
import sys
from pathlib import Path


def alone(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Calls the module's `main` with these arguments in a fresh interpreter, and waits for it."""
    import jaxcirc

    root = str(Path(jaxcirc.__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    load = f"import sys; from jaxcirc.cli._bench import load; sys.exit(load('{module}').main(sys.argv[1:]))"
    command = [sys.executable, "-c", load, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, encoding="utf-8", check=False
    )
