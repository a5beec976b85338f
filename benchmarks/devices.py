"""What it costs that a process has eight devices and not one, on the same cores: `python -m benchmarks.devices`.

Two processes, one with a single CPU device and one with eight (`--xla_force_host_platform_device_count`), each do the same batch job of
`jc.attribute` and fit the same lens. Cores are the same, so eight devices can at best take as long as one; what they take more is the
overhead of copies, threads and dispatch. Each does everything once before, which compiles; then they take turns, and wait while the other
works. Asserts that tables and lenses are equal to the last bit. Prints a table and writes `benchmarks/results/devices.md`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import jaxcirc as jc

from .jobs import prompts


RESULTS = Path(__file__).parent / "results"
COUNTS = (1, 8)
BATCH, SHARD = 32, 64


class Took(NamedTuple):
    """Seconds by the clock, and of all cores together."""

    clock: float
    cores: float


class Process:
    """A process with so many devices, which does what it is told and says how long that took."""

    def __init__(self, count: int, path: Path, out: Path, fitted: int):
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        environment = {
            **os.environ,
            "XLA_FLAGS": flags,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(
                out.parent / "compiled"
            ),  # of eight copies seven find their programs there
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(Path(jc.__file__).parents[1]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, "-m", "benchmarks.devices", "--serve", str(path), str(out), str(fitted)]
        root = str(Path(__file__).parents[1])
        self.process = subprocess.Popen(
            command, env=environment, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8"
        )

    def does(self, what: str) -> "Took":
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline()
        if not said:
            raise RuntimeError(f"The process ended with {self.process.wait()}.")
        return Took(*json.loads(said))

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve(path: Path, out: Path, fitted: int) -> None:
    """Does what is asked for on standard input, into new folders `out-0`, `out-1`, …"""
    model, saes, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_saes("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    corpus = list(jc.data.ioi(tokenizer, fitted, seed=0).clean)
    mesh = Mesh(np.array(jax.local_devices()), ("data",))
    verb = jc.jobs.JobOfNodes(node_threshold=0.3)

    def job(number: int) -> None:
        jc.attribute(model, saes, tokenizer, path, Path(f"{out}-{number}"), verb, batch_size=BATCH, shard_lines=SHARD)

    def lens(number: int) -> None:
        jc.fit_lens(model, corpus, skip_first=4, mesh=mesh).save(Path(f"{out}-{number}.safetensors"))

    known = {"job": job, "lens": lens}
    for number, line in enumerate(sys.stdin):
        began, busy = time.perf_counter(), time.process_time()
        known[line.strip()](number)
        print(json.dumps([time.perf_counter() - began, time.process_time() - busy]), flush=True)


def equal_tables(folder: Path, number: int) -> None:
    want, got = (jc.jobs.read_shards(folder / f"{count}-{number}") for count in COUNTS)
    if not want.num_rows or not got.equals(want):
        raise AssertionError(f"The tables with {COUNTS[1]} devices are not those with {COUNTS[0]}.")


def equal_lenses(folder: Path, number: int) -> None:
    want, got = (jc.JacobianLens.load(folder / f"{count}-{number}.safetensors").J for count in COUNTS)
    same = all(np.abs(want[layer]).max() > 0 and (got[layer] == want[layer]).all() for layer in want)
    if not want or not same:
        raise AssertionError(f"The lens with {COUNTS[1]} devices is not that with {COUNTS[0]}.")


EQUAL: dict[str, Callable[[Path, int], None]] = {"job": equal_tables, "lens": equal_lenses}


def measure(lines: int, fitted: int, repeats: int, folder: Path) -> str:
    path = folder / "prompts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in prompts(lines))
    processes = [Process(count, path, folder / str(count), fitted) for count in COUNTS]
    rows, number = [], 0
    for what, check in EQUAL.items():
        turns: list[list[Took]] = []
        for _ in range(repeats + 1):
            turns.append([process.does(what) for process in processes])
            check(folder, number)
            number += 1
        rows.append((what, turns[1:]))
    for process in processes:
        process.end()
    return report(rows, lines, fitted, repeats)


def report(rows: list[tuple[str, list[list[Took]]]], lines: int, fitted: int, repeats: int) -> str:
    names = {
        "job": f"node effects of {lines} prompts, `jc.attribute`",
        "lens": f"a lens of {fitted} prompts, `jc.fit_lens`",
    }
    table = ""
    for what, turns in rows:
        clock, cores = ([getattr(b, name) / getattr(a, name) for a, b in turns] for name in Took._fields)
        one = statistics.median(first.clock for first, _ in turns)
        table += (
            f"| {names[what]} | {one:.1f} s | {statistics.median(clock):.2f} | {min(clock):.2f} to {max(clock):.2f} "
        )
        table += f"| {statistics.median(cores):.2f} |\n"
    head = (
        f"tiny-gpt2, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}; compiled before, medians of {repeats} turns; "
        "results equal to the last bit. A ratio of 1 is no overhead. Beside the clock's, the ratio of what all cores worked."
    )
    columns = (
        "| what | one device | eight devices, to one | in single turns | work of the cores |\n|---|---|---|---|---|\n"
    )
    return f"{head}\n\n{columns}{table}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.devices")
    parser.add_argument("--lines", type=int, default=4096, help="prompts of the job (%(default)s)")
    parser.add_argument("--fitted", type=int, default=192, help="prompts of the lens (%(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="turns that are timed (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "devices.md", help="where the table goes (%(default)s)")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(Path(given.serve[0]), Path(given.serve[1]), int(given.serve[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        text = measure(given.lines, given.fitted, given.repeats, Path(folder))
    print(text)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
