"""Batch attribution: a verb over a file of prompts of any length, into a folder of tables."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TYPE_CHECKING

from .._checks import check_count, check_kind, check_path
from .._run import check_model
from .._sites import by_site, Site
from .._traced import check_untraced
from ..data._encode import beginning, check_beginnings, check_tokenizer
from ..models import Transformer
from ..runs import check_saes
from ..saes import AbstractDictionary
from ._engine import AbstractEngine, Local, Work
from ._job import Job, Reader
from ._lock import locked
from ._manifest import agree, settings_of
from ._node_verbs import JobOfNodes
from ._progress import Clock, JobReport, Watcher
from ._shards import ALL, check_part_of, Part, shard_files, shards_of
from ._source import AbstractSource, open_source
from ._store import clear_leftovers, Counts, counts_of, list_skipped, SKIPPED
from ._verbs import AbstractVerb, Saes


if TYPE_CHECKING:
    import pyarrow

SHARD_LINES = 1024
BATCH_SIZE = 64
LOOKED_AT = 1024  # lines at once, until there is a prompt


@dataclasses.dataclass(frozen=True)
class Attributed:
    """What a job has left in its folder.

    **Attributes:** - `out`: the folder. - `report`: `JobReport` of this run at its end.
    """

    out: Path
    report: JobReport

    def table(self) -> "pyarrow.Table":
        """Reads all shards that are there into one table, in the order of lines."""
        return read_shards(self.out)


def read_shards(out: str | Path) -> "pyarrow.Table":
    """Reads all shards of a folder that `jc.jobs.attribute` wrote into one table, in the order of lines.

    **Raises:** `ValueError` if there are none.
    """
    import pyarrow
    import pyarrow.parquet

    if not (files := shard_files(check_path("read_shards: out", out))):
        raise ValueError(f"read_shards: {out} holds no shards. Name a folder that jaxcirc attribute wrote.")
    tables = [pyarrow.parquet.read_table(file).replace_schema_metadata() for file in files]
    return pyarrow.concat_tables(tables)


def attribute(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
    tokenizer: Any,
    prompts: str | Path,
    out: str | Path,
    verb: AbstractVerb | None = None,
    *,
    batch_size: int = BATCH_SIZE,
    shard_lines: int = SHARD_LINES,
    bos: bool | None = None,
    first_answer: bool = False,
    strict: bool = False,
    part: Part = ALL,
    devices_per_copy: int | None = None,
    engine: "AbstractEngine | None" = None,
    progress: Watcher | None = None,
) -> Attributed:
    """Runs a verb over every pair of prompts of a file and writes a table of what it finds, in parts that are whole at any moment.

    A shard is a fixed range of lines. Each is written under another name and renamed when it is whole, so that a run that is killed, at
    whatever moment, loses the shards that it had under way and nothing else; the same call then does those that are missing, and the
    tables are those of a run that was never killed, row for row. Prompts of a shard are run in batches of one padded length. Nothing but
    the shards under way is ever in memory.

    **Arguments:**

    - `model`, `saes`, `tokenizer`: as `jc.from_pretrained`, `jc.load_saes` and `jc.load_tokenizer` give them. Verbs over components take no
      dictionaries, `saes={}`.
    - `prompts`: JSON lines, a parquet file, or a folder that `save_to_disk` of datasets wrote; rows as `jc.data.load_prompts` reads them.
      Rows that are broken or that no prompt can be made of are left out, and listed in `skipped.jsonl`.
    - `out`: the folder. It gets `shard-*.parquet`; `manifest.json`, with all settings, of which a later run has to have the same; and
      `skipped.jsonl`, with line and reason. One run at a time has it.
    - `verb`: what is computed, one of `jc.jobs.VERBS`, such as `jc.jobs.JobOfNodes(jc.IntegratedGradients(10), node_threshold=0.1)`; its
      docstring says what the rows are. `None` is `jc.jobs.JobOfNodes()`, by the gradient.
    - `batch_size`, `shard_lines`: prompts that are run together, and lines of a shard. Both are settings: batches of another size may round
      otherwise.
    - `bos`, `first_answer`: as in `jc.data.load_prompts`.
    - `strict`: an error for the first row that cannot be used, before anything is computed or written.
    - `part`: `jc.jobs.Part(1, 4)` does the second quarter of the shards, beside other processes with the other parts, on any host that
      sees the folder. Nothing passes between them, and whichever dies leaves the others unharmed.
    - `devices_per_copy`: on how many devices the dictionaries' width is laid; by default on as few as hold it. Each such group of this
      process' devices takes shards of its own.
    - `engine`: `None` computes in this process; `jc.jobs.Ray(address)` in the actors of a Ray cluster.
    - `progress`: called with a `jc.jobs.JobReport`, at least every few seconds.

    **Returns:** `Attributed`; `.table()` reads the shards.

    **Raises:** `ValueError` if the folder was begun with other settings, is another run's at the moment, or that of runs with parts of
    another division, or holds something else; for a model that the verb does not serve, and a file of which no line can be used, both
    before there is a folder; if the verb refuses every prompt of the file; `OSError` if the disk is full, with the shards before it whole.

    >>> import json, pathlib
    >>> pair = {"clean": "The boy", "corrupt": "The boys", "answer": " is", "foil": " are"}
    >>> _ = pathlib.Path("pairs.jsonl").write_text(json.dumps(pair), encoding="utf-8")
    >>> done = jc.attribute(model, saes, tokenizer, "pairs.jsonl", "effects", batch_size=1)
    >>> done.table().column_names
    ['line', 'site', 'pos', 'unit', 'effect']
    """
    check_untraced("attribute", model)
    verb = JobOfNodes() if verb is None else verb
    check_kind("attribute: verb", verb, AbstractVerb, "one of jc.jobs.VERBS, such as jc.jobs.JobOfNodes()")
    check_model(model)
    check_tokenizer("attribute", tokenizer)
    check_count("attribute: batch_size", "prompts are run together", batch_size)
    check_count("attribute: shard_lines", "lines a shard has", shard_lines)
    check_part_of("attribute: part", part)
    check_kind("attribute: engine", engine, (AbstractEngine, type(None)), "jc.jobs.Local(), jc.jobs.Ray() or None")
    sites = _saes(model, saes, verb)
    prepared = verb.prepared(model)
    folder = check_path("attribute: out", out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"attribute: out: {folder} is a file. Expected the name of a folder, which is made if need be."
        )
    source = open_source(prompts, shard_lines)
    reader = Reader(tokenizer, tuple(beginning(tokenizer, bos, of_file=True)), first_answer, model.most_positions)
    _look(source, reader, shard_lines)
    if strict:
        _check_all(source, reader, shard_lines)
    # The folder is made when nothing is left that can be wrong with what was asked for.
    with contextlib.ExitStack() as held:
        crew = held.enter_context((engine or Local()).started(model, sites, devices_per_copy))
        options = {
            **verb.settings(),
            **{"batch_size": batch_size, "shard_lines": shard_lines, "first_answer": first_answer, "strict": strict},
            **{"bos": bool(reader.start), "devices_per_copy": crew.devices_per_copy},
        }
        settings = settings_of(model, sites, source, tokenizer, verb.name, options, crew.platform)
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(locked(folder, part))
        agree(folder, settings, {"devices": crew.devices, "model": model.name, "prompts": str(prompts)})
        clear_leftovers(folder, part)
        shards = shards_of(source.lines, shard_lines, part)
        there = {shard: counts for shard in shards if (counts := counts_of(folder, shard)) is not None}
        lines = sum(shard.lines.last - shard.lines.first + 1 for shard in shards)
        clock = Clock(lines, functools.reduce(Counts.plus, there.values(), Counts()), crew.copies)
        missing, watch = [shard for shard in shards if shard not in there], progress or (lambda report: None)
        try:
            if missing:
                job = Job.of(model, sites, verb, reader, batch_size)
                crew.run(Work(job, prepared, sites, source, missing, folder, clock, watch))
        except BaseException:
            with contextlib.suppress(OSError):  # the disk is full, say, and it is that error that counts
                list_skipped(folder)
            raise
        list_skipped(folder)
    report = clock.report()
    watch(report)
    if report.skipped and not report.used and _none_used(folder, source, shard_lines):
        raise ValueError(f"prompts: no line of {source.path} could be used, and {folder / SKIPPED} says why.")
    return Attributed(folder, report)


def _saes(model: Transformer, saes: Any, verb: AbstractVerb) -> Saes:
    """The dictionaries by site, checked if the verb takes any, and else none."""
    if not verb.takes_dictionaries:
        return {}
    sites = by_site(saes)
    check_saes(model, sites)
    return dict(sorted(sites.items()))


def _look(source: AbstractSource, reader: Reader, each: int) -> None:
    """Warns of how the first prompts begin, as every verb over files does. **Raises:** `ValueError` if there is no prompt."""
    first = None
    for records in source.ranges(shard.lines for shard in shards_of(source.lines, each)):
        for begin in range(0, len(records), LOOKED_AT):
            rows, skipped = reader.read(records[begin : begin + LOOKED_AT])
            if rows:
                check_beginnings(reader.tokenizer, [row.clean for _, row in rows])
                return
            first = first or skipped[0].reason
    raise ValueError(f"prompts: no line of {source.path} could be used: {first}")


def _none_used(folder: Path, source: AbstractSource, each: int) -> bool:
    """Whether all shards are there, whoever wrote them, and none is of any prompt."""
    every = (counts_of(folder, shard) for shard in shards_of(source.lines, each))
    return all(counts is not None and not counts.prompts for counts in every)


def _check_all(source: AbstractSource, reader: Reader, each: int) -> None:
    """ValueError for the first row that no prompt can be made of."""
    for records in source.ranges(shard.lines for shard in shards_of(source.lines, each)):
        _, skipped = reader.read(records)
        if skipped:
            raise ValueError(
                f"prompts: {source.path}, {skipped[0].reason} Correct it, or leave such rows out (strict=False)."
            )
