"""A job, and the one function of it that every driver calls: the rows of a shard, as a table."""

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TYPE_CHECKING

import jax
import numpy as np

from .._records import Record
from ..data import Prompts
from ..data._files import padded_prompts
from ..data._row_problems import Malformed, Unusable
from ..data._rows import pair_of, PromptRow
from ..models import Transformer
from ..runs import padded_length, sizes_without_history
from ._devices import Copy
from ._shards import Shard
from ._store import Found, Skipped
from ._verbs import AbstractVerb, Columns, joined, ROW, Saes


if TYPE_CHECKING:
    import pyarrow

Numbered = tuple[int, Record]
Pairs = list[tuple[int, PromptRow]]  # by line


class Stopped(Exception):
    """The job was told to stop before the shard was done."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """How rows become prompts. - `start`: token ids put before each. - `most`: tokens that the model can run."""

    tokenizer: Any
    start: tuple[int, ...]
    first_answer: bool
    most: int

    def read(self, records: Sequence[Numbered]) -> tuple[Pairs, list[Skipped]]:
        """Makes prompts of rows, and says what is wrong with those of which there are none."""
        rows, skipped = [], []
        for line, record in records:
            try:
                row = pair_of(
                    record, self.tokenizer, list(self.start), first_answer=self.first_answer, counterfactual=None
                )
                if len(row.clean) > self.most:
                    raise Unusable(
                        f"{record.where}: the prompts are {len(row.clean)} tokens, and the model takes {self.most}."
                    )
            except (Malformed, Unusable) as problem:
                skipped.append(Skipped(line, str(problem)))
            else:
                rows.append((line, row))
        return rows, skipped


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a shard's table depends on, but the weights.

    **Attributes:** - `verb`, `reader`, `batch_size`. - `context`: of the model. - `names`: what numbers in columns of names stand for. -
    `dtype`: of values.
    """

    verb: AbstractVerb
    reader: Reader
    batch_size: int
    context: int
    names: dict[str, list[str]]
    dtype: str

    @staticmethod
    def of(model: Transformer, saes: Saes, verb: AbstractVerb, reader: Reader, batch_size: int) -> "Job":
        dtype = "float64" if np.dtype(model.activation_dtype).itemsize > 4 else "float32"
        return Job(verb, reader, batch_size, model.n_ctx, verb.names(model, saes), dtype)

    def shard(
        self,
        copy: Copy,
        shard: Shard,
        rows: Pairs,
        skipped: Sequence[Skipped],
        done: Callable[[int], object] = lambda prompts: None,
        stop: threading.Event | None = None,
    ) -> Found:
        """Computes the table of a shard, of the prompts in its lines and those that were `skipped`, a batch at a time; `done` is told of
        how many prompts each was.

        Batches are of rows of the shard alone, in the order of lines within a length, and all of one size; and lists in them have sizes
        that follow from themselves. So the table is the same to the last bit, whoever computes it and after whatever.

        **Raises:** `Stopped` once `stop` is set.
        """
        parts, lines, served, skipped = [], [], 0, list(skipped)
        with sizes_without_history():
            for batch in self._batches(rows):
                if stop is not None and stop.is_set():
                    raise Stopped
                columns, refused = self._served(copy, [row for _, row in batch])
                of_batch = np.array([line for line, _ in batch], np.int64)
                lines.append(of_batch[columns.pop(ROW)])
                parts.append(columns)
                served += len(batch) - len(refused)
                skipped += [Skipped(int(of_batch[i]), f"line {of_batch[i]}: {why}") for i, why in refused.items()]
                done(len(batch))
        found = joined([{"line": line} | part for line, part in zip(lines, parts, strict=True)]) if parts else {}
        return Found(shard, self._table(found), served, sorted(skipped))

    def _batches(self, rows: Pairs) -> Iterator[Pairs]:
        """Rows of one padded length, so many at a time."""
        buckets: dict[int, Pairs] = {}
        for line, row in rows:
            buckets.setdefault(self._length(row), []).append((line, row))
        for length in sorted(buckets):
            bucket = buckets[length]
            yield from (bucket[i : i + self.batch_size] for i in range(0, len(bucket), self.batch_size))

    def _length(self, row: PromptRow) -> int:
        """At what length a prompt is run; not beyond the context that the model was trained with, if it is not so long itself."""
        length = len(row.clean)
        return padded_length(length, self.context if length <= self.context else self.reader.most)

    def _served(self, copy: Copy, rows: list[PromptRow]) -> tuple[Columns, dict[int, str]]:
        """The rows of a batch's table. If the verb refuses the batch, those of each prompt by itself, and why it refuses some."""
        try:
            return self._computed(copy, rows), {}
        except ValueError:
            parts, refused = [self._none()], {}
            for i, row in enumerate(rows):
                try:
                    columns = self._computed(copy, [row])
                    parts.append(columns | {ROW: np.full(len(columns[ROW]), i)})
                except ValueError as error:
                    refused[i] = " ".join(str(error).split())
            return joined(parts), refused

    def _computed(self, copy: Copy, rows: list[PromptRow]) -> Columns:
        """The rows of a batch's table; copies of the last prompt fill it up to its size, and are left out."""
        filled = rows + rows[-1:] * (self.batch_size - len(rows))
        prompts: Prompts = padded_prompts(filled, self._length(rows[0]), self.reader.tokenizer)
        try:
            columns = self.verb.rows(copy.model, copy.saes, prompts)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RuntimeError(
                f"The device is out of memory with {self.batch_size} prompts of {self._length(rows[0])} tokens at once. Give a smaller "
                "batch_size, and another folder, as batches of another size may round otherwise."
            ) from error
        kept = columns[ROW] < len(rows)
        return {name: values[kept] for name, values in columns.items()}

    def _none(self) -> Columns:
        return {name: np.zeros(0, self._dtype(kind)) for name, kind in {ROW: "int", **self.verb.columns}.items()}

    def _dtype(self, kind: str) -> str:
        return self.dtype if kind == "value" else "int32"

    def _table(self, columns: Columns) -> "pyarrow.Table":
        """Sorts rows by line and by the columns of places, and writes names out."""
        import pyarrow

        columns = columns or self._none() | {"line": np.zeros(0, np.int64)}
        places = [name for name, kind in self.verb.columns.items() if kind != "value"]
        order = np.lexsort([columns[name] for name in reversed(["line", *places])])
        arrays = {"line": pyarrow.array(columns["line"][order], pyarrow.int64())}
        for name, kind in self.verb.columns.items():
            values = columns[name][order].astype(self._dtype(kind))
            if kind == "value":
                arrays[name] = pyarrow.array(values)
                continue
            arrays[name] = pyarrow.array(values, mask=values < 0)
            if kind == "name":
                known = pyarrow.array(self.names[name], pyarrow.string())
                arrays[name] = pyarrow.DictionaryArray.from_arrays(arrays[name], known).cast(pyarrow.string())
        return pyarrow.table(arrays)
