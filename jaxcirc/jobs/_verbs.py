"""What a batch job computes: a verb of the library, and the rows that it makes of a batch of prompts.

Another verb is one class, and one entry in the registry of `_registry.py`.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .._sites import Site
from ..data import Prompts
from ..models import Transformer
from ..saes import AbstractDictionary


Saes = Mapping[Site, AbstractDictionary]
Columns = dict[str, np.ndarray]
ROW = "row"  # the column that says of which prompt of the batch a row is


@dataclasses.dataclass(frozen=True)
class AbstractVerb(abc.ABC):
    """A verb with its settings, which are the fields.

    **Attributes:**

    - `name`: what the command line calls it.
    - `columns`: the columns behind `line`, in the order by which rows are sorted, and what is in each: `"name"`, a number that stands for
      one of `names`; `"int"`; or `"value"`, which no sorting reads. -1 in a name or an int stands for none.
    - `takes_dictionaries`: whether there have to be any.
    """

    name: ClassVar[str]
    columns: ClassVar[dict[str, str]]
    takes_dictionaries: ClassVar[bool] = False

    @abc.abstractmethod
    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        """What the numbers in each column of names stand for."""

    @abc.abstractmethod
    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        """Computes the rows of a batch, in any order, with `ROW` beside the columns.

        **Raises:** `ValueError` if a prompt of the batch cannot be served; each is then asked for by itself.
        """

    def prepared(self, model: Transformer) -> Transformer:
        """The model that rows are computed with, made once, before there is a folder. **Raises:** `ValueError` for one that this verb does
        not serve.
        """
        return model

    def settings(self) -> dict[str, Any]:
        """All fields, for the manifest: a strategy by its name and its own settings."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"name": type(value).__name__, **dataclasses.asdict(value)}
    return value


def finite(what: str, values: np.ndarray) -> np.ndarray:
    """The values. **Raises:** `ValueError` for one that is not finite: no comparison with a threshold would let it be seen."""
    if not np.isfinite(values).all():
        raise ValueError(f"{what} are not finite. Look at the model's numbers on this prompt.")
    return values


def above(what: str, values: np.ndarray, threshold: float) -> np.ndarray:
    """Which values are larger than the threshold, in size."""
    return np.abs(finite(what, values)) > threshold


def joined(parts: list[Columns]) -> Columns:
    """One table of several with the same columns."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
