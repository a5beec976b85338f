"""Prompts in batches: of arrays that are all there, or of a source that gives one batch after another."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable, TypeVar

import numpy as np
from jaxtyping import Bool

from .._checks import check_kind, check_optional_count
from .._indexing import rows_of
from .._metrics import Metric
from .._sites import Site
from ..data import Prompts
from ..models import Transformer
from ..runs import of_size, prepare, Problem
from ..saes import AbstractDictionary


class Batch(NamedTuple):
    """Prompts that are run together; those that are not `real` are copies that fill up the last batch, so that all have one size."""

    problem: Problem
    real: Bool[np.ndarray, " batch"]


T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Source(Protocol[T_co]):
    """What can be gone through more than once, a batch at a time."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[T_co]: ...


class ArrayBatches:
    """The prompts of a problem, `size` at a time, or all at once."""

    def __init__(self, problem: Problem, size: int | None, verb: str):
        check_optional_count(f"{verb}: batch_size", "prompts are run at once", size)
        self.problem, self.n = problem, problem.clean.shape[0]
        self.size = self.n if size is None else size

    def __len__(self) -> int:
        return -(-self.n // self.size)

    def rows(self, i: int) -> np.ndarray:
        """The numbers of the prompts of batch `i`; the last one stands for those that fill it up."""
        return of_size(self.n, self.size)[i]

    def __iter__(self) -> Iterator[Batch]:
        whole = {name: getattr(self.problem, name) for name in ("clean", "corrupt", "metric", "mask")}
        for i in range(len(self)):
            rows = self.rows(i)
            part = rows_of(whole, rows)
            yield Batch(dataclasses.replace(self.problem, **part), np.arange(self.size) < self.n - i * self.size)


class PromptBatches:
    """What a source of prompts gives, each batch checked when it comes."""

    def __init__(
        self,
        model: Transformer,
        saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary],
        source: Source[Prompts],
        metric: Callable[[Prompts], Metric],
    ):
        check_kind("discover_batches: batches", source, Source, "a list of jc.data.Prompts, or a jc.data.PromptFile")
        if not len(source):
            raise ValueError(
                "There are no batches of prompts. Give a list of jc.data.Prompts, or jc.data.PromptFile(path, tokenizer, batch_size=…)."
            )
        for i, prompts in enumerate(source if isinstance(source, list | tuple) else ()):  # of others each when it comes
            _check_prompts(i, prompts)
        self.model, self.saes, self.source, self.metric = model, saes, source, metric

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        size = 0
        for i, prompts in enumerate(self.source):
            _check_prompts(i, prompts)
            n, size = len(prompts), max(size, len(prompts))
            filled = prompts if n == size else prompts[np.minimum(np.arange(size), n - 1)]
            given = (filled.clean, filled.corrupt, self.metric(filled), filled.mask)
            yield Batch(prepare(self.model, self.saes, *given), np.arange(size) < n)


def _check_prompts(i: int, prompts: object) -> None:
    check_kind(f"discover_batches: batches: number {i}", prompts, Prompts, "prompts, as jc.data.Prompts holds them")
