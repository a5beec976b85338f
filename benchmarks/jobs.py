"""A batch job killed again and again, beside one that is left alone: `python -m benchmarks.jobs --lines 100000 --kills 5`.

Prompts on subject-verb agreement, of several lengths, through `jaxcirc attribute` on the shipped model. Asserts that the tables of both are
equal row for row, and then says how steady the rate was, how much memory the process took beyond what it had when the first table was
there, and what the compilation cache saves a second process. Prints a table and writes `benchmarks/results/jobs.md`.
"""

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

import jaxcirc as jc


RESULTS = Path(__file__).parent / "results"
KINDS = ("rc", "nounpp", "within_rc")
EACH = 50_000  # prompts of a kind that are made at once
LOOK = 0.2  # seconds between two looks at the memory
GIB = 2**30


class Run(NamedTuple):
    """A run that ended by itself. - `seconds`: in all. - `tables`: how many there were at each look, `[(seconds, tables, bytes)]`."""

    seconds: float
    looks: list[tuple[float, int, int]]

    def growth(self) -> int:
        """Bytes beyond what the process held when the first table was there."""
        held = [size for _, tables, size in self.looks if tables]
        return max(held) - held[0]

    def rates(self, parts: int = 4) -> list[float]:
        """Tables a second in each part of the time from the first table on; the last table may be a short one."""
        there = [(at, tables) for at, tables, _ in self.looks if tables]
        (first, begin), (last, end) = there[0], there[-1]
        at = lambda tables: next(seconds for seconds, n in there if n >= tables)
        steps = [round(begin + (end - begin) * i / parts) for i in range(parts + 1)]
        times = [first, *(at(step) for step in steps[1:-1]), last]
        return [
            (b - a) / max(t - s, LOOK)
            for (a, b), (s, t) in zip(itertools.pairwise(steps), itertools.pairwise(times), strict=True)
        ]


def prompts(lines: int) -> Iterator[dict[str, str]]:
    """Makes prompts of three lengths, in turn."""
    tokenizer, made = jc.load_tokenizer("tiny-gpt2"), 0
    for seed in itertools.count():
        sets = [jc.data.subject_verb(tokenizer, min(EACH, lines // 3 + 1), kind=kind, seed=seed) for kind in KINDS]
        for i in range(len(sets[0])):
            for each in sets:
                if made == lines:
                    return
                made += 1
                ids = (each.clean[i], each.corrupt[i], each.answer[i : i + 1], each.foil[i : i + 1])
                yield dict(zip(("clean", "corrupt", "answer", "foil"), map(tokenizer.decode, ids), strict=True))


def start(path: Path, out: Path, cache: Path, threshold: float) -> subprocess.Popen:
    given = ("--model", "tiny-gpt2", "--saes", "tiny-gpt2", "--prompts", str(path), "--out", str(out))
    root = str(Path(jc.__file__).parents[1])
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "PYTHONPATH": root,
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "jaxcirc", "attribute", *given, "--node-threshold", str(threshold)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def watched(process: subprocess.Popen, out: Path) -> Run:
    began, looks = time.monotonic(), []
    while process.poll() is None:
        looks.append(
            (time.monotonic() - began, len(list(out.glob("shard-*"))) if out.is_dir() else 0, resident(process.pid))
        )
        time.sleep(LOOK)
    if process.returncode:
        raise RuntimeError(f"The job ended with {process.returncode}.")
    looks.append((time.monotonic() - began, len(list(out.glob("shard-*"))), looks[-1][2]))
    return Run(time.monotonic() - began, looks)


def resident(pid: int) -> int:
    """Bytes of memory that a process has, where the system says it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def measure(lines: int, kills: int, threshold: float, folder: Path) -> str:
    path, few = folder / "prompts.jsonl", folder / "few.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in prompts(lines):
            file.write(json.dumps(row) + "\n")
    with path.open(encoding="utf-8") as file:
        few.write_text("".join(itertools.islice(file, 64)), encoding="utf-8")
    cache = folder / "compiled"
    cold = watched(start(few, folder / "cold", cache, threshold), folder / "cold")
    warm = watched(start(few, folder / "warm", cache, threshold), folder / "warm")
    whole = watched(start(path, folder / "whole", cache, threshold), folder / "whole")
    draw, killed, out = random.Random(0), [], folder / "killed"
    for _ in range(kills):
        process = start(path, out, cache, threshold)
        time.sleep(draw.uniform(0, 1.5 * whole.seconds / (kills + 1)))
        process.kill()
        process.wait()
        killed.append(len(list(out.glob("shard-*"))))
    watched(start(path, out, cache, threshold), out)
    want, got = (jc.jobs.read_shards(each) for each in (folder / "whole", out))
    if not got.equals(want) or not want.num_rows:
        raise AssertionError("The tables of the run that was killed are not those of the other.")
    return report(lines, whole, killed, want.num_rows, cold.seconds / warm.seconds)


def report(lines: int, whole: Run, killed: list[int], rows: int, saved: float) -> str:
    rates = whole.rates()
    shards = whole.looks[-1][1]
    first = next(at for at, tables, _ in whole.looks if tables)
    steady = lines * (1 - 1 / shards) / (whole.seconds - first) if shards > 1 else lines / whole.seconds
    about = {
        "prompts": f"{lines}, of three lengths",
        "rows": str(rows),
        "tables": str(shards),
        "killed with so many tables there": ", ".join(map(str, killed)) or "never",
        "rows that differ from the run that was left alone": "0",
        "prompts a second, from the first table on": f"{steady:.0f}",
        "tables a second in each quarter, to the mean": ", ".join(f"{r * len(rates) / sum(rates):.2f}" for r in rates),
        "memory beyond that at the first table": f"{whole.growth() / GIB:.2f} GiB",
        "64 prompts, without kept programs to with them": f"{saved:.1f} times as long",
    }
    head = f"`jaxcirc attribute --verb node-effects` on tiny-gpt2, {platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}."
    table = "".join(f"| {name} | {value} |\n" for name, value in about.items())
    return f"{head}\n\n| what | measured |\n|---|---|\n{table}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs")
    parser.add_argument("--lines", type=int, default=100_000, help="how many prompts (%(default)s)")
    parser.add_argument("--kills", type=int, default=5, help="how often the second run is killed (%(default)s)")
    parser.add_argument("--node-threshold", type=float, default=0.3, help="as the command takes it (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "jobs.md", help="where the table goes (%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = measure(given.lines, given.kills, given.node_threshold, Path(folder))
    print(text)
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
