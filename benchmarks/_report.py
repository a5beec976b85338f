"""Results as JSON, and their table as markdown."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any


RESULTS = Path(__file__).parent / "results"
MARKED = re.compile(r"<!-- benchmarks: begin (?P<name>[\w-]+) -->.*?<!-- benchmarks: end -->", re.DOTALL)
EXPERIMENTS = ("experiments", "components", "corpus")
HEADER = (
    "| what | sizes | jaxcirc | against | its time | ratio | error | compile | memory, ours / theirs | "
    "closed-form arithmetic, share of rate | autodiff arithmetic, share of rate |"
)


def write(
    results: dict[str, Any], folder: Path, name: str, as_table: Callable[[dict[str, Any]], str] | None = None
) -> list[Path]:
    """Writes the JSON and the table, as `name.json` and `name.md`, the table that of rows unless another is given; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"json": json.dumps(results, indent=1) + "\n", "md": (as_table or table)(results)}
    paths = {folder / f"{name}.{ending}": text for ending, text in texts.items()}
    for path, text in paths.items():
        path.write_text(text, encoding="utf-8")
    return list(paths)


def last_of(
    measured: Iterable[dict[str, Any]],
    folder: Path,
    name: str,
    as_table: Callable[[dict[str, Any]], str] | None = None,
) -> dict[str, Any]:
    """The last of results that grow. Those so far are in `name.part.json` and `.md`, and stay there if the run is stopped."""
    results, parts = {}, []
    for results in measured:
        parts = write(results, folder, f"{name}.part", as_table)
    for part in parts:
        part.unlink()
    return results


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def table(results: dict[str, Any]) -> str:
    """The table, with what it was measured on above it and what was timed in part below."""
    lines = [_about(results), "", HEADER, "|" + "---|" * (HEADER.count("|") - 1)]
    for row in results["rows"]:
        lines += _lines(row)
    notes = list(dict.fromkeys(note for row in results["rows"] for note in _notes(row)))
    return "\n".join([*lines, *([""] if notes else []), *(f"- {note}" for note in notes)]) + "\n"


def fill(text: str, folder: Path) -> str:
    """`text` with what belongs between each two markers: of `NAME` the table `NAME.md` of the results in `folder`, of `brief` one line for
    each experiment. **Raises:** `ValueError` without markers, and `FileNotFoundError` without those results.
    """
    pairs = len(MARKED.findall(text))
    if not pairs or any(text.count(f"<!-- benchmarks: {which}") != pairs for which in ("begin", "end")):
        raise ValueError(
            "Expected <!-- benchmarks: begin NAME --> and after it <!-- benchmarks: end -->; put them where a table belongs."
        )

    def filled(found: re.Match[str]) -> str:
        name = found["name"]
        rows = brief(folder) if name == "brief" else (folder / f"{name}.md").read_text(encoding="utf-8")
        return f"<!-- benchmarks: begin {name} -->\n\n{rows.strip()}\n\n<!-- benchmarks: end -->"

    return MARKED.sub(filled, text)


def brief(folder: Path) -> str:
    """A line for each experiment: its time, the time of the usual way over it, and that of the fastest of the other ways."""
    lines = ["| what | jaxcirc | the usual way | ratio | the fastest other way | ratio |", "|---|---|---|---|---|---|"]
    for row in (row for name in EXPERIMENTS for row in read(folder / f"{name}.json")["rows"]):
        rivals = [rival for rival in row["rivals"] if "ratio" in rival]
        fastest = min(rivals, key=lambda rival: rival["ratio"]["median"])
        others = [cell for each in (rivals[0], fastest) for cell in (each["name"], f"{each['ratio']['median']:.3g}")]
        lines.append(_join(row["name"], _seconds(row["ours"]["seconds"]), *others))
    return "\n".join(lines)


def _about(results: dict[str, Any]) -> str:
    machine = results["machine"]
    device = machine["processor"] if machine["device"] == "cpu" else machine["device"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("jax", "jaxlib", "torch") if machine[name])
    return (
        f"{device}, {machine['cores']} cores, {machine['dtype']}, matmul precision {machine['matmul_precision']}, {versions}; "
        f"measured matrix-product rate {results['matmul_rate'] / 1e9:.0f} Gflop/s."
    )


def _lines(row: dict[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{name} {value}" for name, value in row["sizes"].items())
    if "failed" in row:
        yield _join(row["name"], sizes, "failed", *[""] * (HEADER.count("|") - 4))
        return
    ours, work = row["ours"], row["work"]
    own = (row["name"], sizes, _seconds(ours["seconds"]))
    shares = (f"{work['own_share']:.0%}", f"{work['autodiff_share']:.3g}")
    for rival in row["rivals"]:
        if "ratio" not in rival:
            against = (rival["name"], rival.get("skipped", ""), "", f"{ours['error_against_jvp']:.0e}")
            yield _join(*own, *against, f"{ours['compile_seconds']:.1f} s", _bytes(ours.get("peak_bytes")), *shares)
            continue
        ratio = rival["ratio"]
        against = f"{rival['name']} ({rival['variant']})"
        took = _seconds(rival["seconds"]) + ("*" if rival["scale"] != 1 else "")
        times = f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})"
        error = "" if rival["error"] is None else f"{rival['error']:.0e}"
        memory = _bytes(ours.get("peak_bytes")) + (f" / {_bytes(rival['peak_bytes'])}" if "peak_bytes" in rival else "")
        yield _join(*own, against, took, times, error, f"{ours['compile_seconds']:.1f} s", memory, *shares)


def _notes(row: dict[str, Any]) -> Iterator[str]:
    if "failed" in row:
        yield f"{row['name']} failed: {row['failed']}"
        return
    for rival in row["rivals"]:
        if rival.get("scale", 1) != 1:
            timed = f"{rival['timed']} of {rival['all']} {rival['unit']} were timed and scaled linearly"
            each = list(rival.get("linearity", {}).values())
            if each:
                timed += (
                    f"; with {rival['tried_with']} instead, the time of one was {each[0] / each[1]:.2f} times as long"
                )
            yield f"*{row['name']}, {rival['name']}: {timed}."


def _join(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _seconds(took: dict[str, float]) -> str:
    return f"{took['median']:.3g} s"


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f} MiB"
