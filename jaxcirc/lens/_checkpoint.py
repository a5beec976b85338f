"""How far a fit is, on disk: written whole at any moment, and taken up only by a fit of the same model, prompts and settings."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int

from ..models import Transformer
from ._running import Running
from ._settings import LensSettings
from ._store import read, Stored, write


class Progress(NamedTuple):
    """The means of the first `next` prompts, of which `skipped` were too short; `history` as of `JacobianLens`."""

    means: dict[int, Running]
    next: int
    skipped: int
    history: tuple[tuple[int, float, float], ...]
    centres: dict[int, Float[Array, "cluster d_model"]] | None

    @property
    def n_prompts(self) -> int:
        return self.next - self.skipped


def digest(prompts: Sequence[Int[np.ndarray, " _"]]) -> str:
    """Sixteen hexadecimal digits of token sequences and their order."""
    found = hashlib.sha256()
    for tokens in prompts:
        found.update(f"{len(tokens)}:".encode())
        found.update(np.ascontiguousarray(tokens, "<i8").tobytes())
    return found.hexdigest()[:16]


class Checkpoint:
    """A checkpoint at `path`, or none for `None`, written when the last one is `seconds` old."""

    def __init__(
        self,
        path: Path | None,
        seconds: int | float,
        settings: LensSettings,
        prompts: Sequence[np.ndarray],
        model: Transformer,
        averages: int,
    ):
        self.path, self.seconds, self.settings, self.prompts = path, seconds, settings, prompts
        self._n_layers, self._shape = model.n_layers, (averages, model.d_model, model.d_model)
        self._written = time.monotonic()

    def resumed(self) -> Progress | None:
        """What the file holds, `None` if there is none yet.

        **Raises:** `ValueError` if it is of another model, other prompts or other settings.
        """
        if self.path is None or not self.path.exists():
            return None
        stored = read(self.path)
        other = f"Give another path, or remove {self.path} to begin anew."
        held = stored.settings.counted(self._n_layers)
        name = self.settings.first_difference(held)
        if name is not None:
            raise ValueError(
                f"fit_lens: {self.path} is a checkpoint with {name} {getattr(held, name)}, and {getattr(self.settings, name)} "
                f"was asked for. {other}"
            )
        if stored.progress is None:
            raise ValueError(f"fit_lens: {self.path} is a finished lens, and not a checkpoint. {other}")
        self._check_means(stored, other)
        done = int(stored.progress["next"])
        of = stored.progress.get("digest")
        if done > len(self.prompts) or (of is not None and of != digest(self.prompts[:done])):
            raise ValueError(
                f"fit_lens: {self.path} is a checkpoint of {done} prompts, and these are not the first of those that were given. {other}"
            )
        return Progress(stored.means, done, stored.n_skipped, stored.history, stored.centres)

    def _check_means(self, stored: Stored, other: str) -> None:
        wanted = list(range(self.settings.target_layer))
        if sorted(stored.means) != wanted:
            raise ValueError(
                f"fit_lens: {self.path} is a checkpoint of layers {sorted(stored.means)}, and one of layers {wanted} was asked for. {other}"
            )
        by_cluster = wanted if self.settings.average == "cluster" else []
        if sorted(stored.centres or {}) != by_cluster:
            raise ValueError(
                f"fit_lens: {self.path} holds the centres of clusters of layers {sorted(stored.centres or {})}, and a fit with "
                f"the average {self.settings.average!r} has those of layers {by_cluster}. {other}"
            )
        for layer, running in stored.means.items():
            if running.mean.shape != self._shape:
                said = [f"{n} of width {width}" for n, *_, width in (running.mean.shape, self._shape)]
                what = {"cluster": ", one for each cluster", "head": ", one for each head and one more"}
                raise ValueError(
                    f"fit_lens: {self.path} is a checkpoint with {said[0]} as the means of layer {layer}, and {said[1]} were asked for"
                    f"{what.get(self.settings.average, '')}. {other}"
                )

    def keep(self, progress: Progress, *, at_once: bool = False) -> None:
        """Writes how far the fit is, if it is time to."""
        if self.path is None or not progress.n_prompts:
            return
        if not at_once and time.monotonic() - self._written < self.seconds:
            return
        about = {"next": progress.next, "digest": digest(self.prompts[: progress.next])}
        means, centres, history = progress.means, progress.centres, progress.history
        settings, prompts, skipped = self.settings, progress.n_prompts, progress.skipped
        write(self.path, Stored(means, settings, prompts, skipped, centres, about, history))
        self._written = time.monotonic()
