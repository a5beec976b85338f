"""Samplers: the datum that takes the place of another, of those that a claim says are as good."""

import abc
import dataclasses
import functools as ft
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from .._checks import check_count, check_kind
from ._data import check_function, Data, uniform


Rows = Int[np.ndarray, "sample batch"]  # data, by number


@dataclasses.dataclass(frozen=True)
class Words:
    """Random words of one draw, from the key and the claim's path alone: no draw depends on which others there are."""

    key: Key[Array, ""] | UInt32[Array, "2"]
    path: str
    shape: tuple[int, int]

    def drawn(self, what: str = "") -> UInt32[np.ndarray, "sample batch"]:
        digest = hashlib.blake2b(f"{self.path}\n{what}".encode(), digest_size=8).digest()
        return np.asarray(_words(self.key, np.frombuffer(digest, np.uint32), shape=self.shape))

    def at(self, path: str) -> "Words":
        return dataclasses.replace(self, path=path)


class AbstractSampler(abc.ABC):
    """Which datum takes the place of another."""

    @abc.abstractmethod
    def draw(self, words: Words, rows: Rows, data: Data) -> Rows:
        """**Arguments:** - `words`: random words of this draw. - `rows` `[sample batch]`: of which data, by number. - `data`: all.

        **Returns:** the data that take their place, by number.
        """


@dataclasses.dataclass(frozen=True)
class Exact(AbstractSampler):
    """The datum itself."""

    def draw(self, words, rows, data):
        return rows


@dataclasses.dataclass(frozen=True)
class Unconditional(AbstractSampler):
    """Any datum, with replacement, for each example and each claim its own draw."""

    def draw(self, words, rows, data):
        return uniform(words.drawn(), rows, data.alike)


@dataclasses.dataclass(frozen=True)
class UnconditionalTogether(AbstractSampler):
    """Any datum, the same one for all examples of a sample."""

    def draw(self, words, rows, data):
        return uniform(np.broadcast_to(words.drawn()[:, :1], rows.shape), rows, data.alike)


@dataclasses.dataclass(frozen=True)
class Conditional(AbstractSampler):
    """Any datum of the same class, with replacement: what a claim says the value depends on.

    **Arguments:**

    - `of`: what tells the classes. A function of one prompt, which is given as tokens `[seq]` or as a `Prompts` without the axis over
      prompts, and returns a number, a text or an array; an array with one class for each prompt; the name of a position (`"IO"`), which is
      the token there, or with `.position` behind it where it is (`"IO.position"`); `"answer"`, `"foil"`; a position's number; or a tuple
      of such names and numbers, of which all must agree.
    - `strict`: whether it is an error if a datum is alone in its class. Otherwise such a datum is drawn itself, which confirms any claim.

    >>> same_answer = jc.Conditional("answer")
    >>> same_word = jc.Conditional(lambda prompt: int(prompt.clean[3]))
    """

    of: Any
    strict: bool = False

    def __post_init__(self):
        if isinstance(self.of, list):
            object.__setattr__(self, "of", tuple(self.of))
        check_function("Conditional", self.of)
        check_kind("Conditional: strict", self.strict, bool, "True or False")

    def draw(self, words, rows, data):
        names = data.classes(self.of)
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        both = np.stack([[numbers[name] for name in names], data.alike], axis=1)
        classes = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        if self.strict:
            alone = rows[np.bincount(classes)[classes[rows]] == 1]
            if alone.size:
                raise ValueError(
                    f"Conditional: of {words.path} the class {names[alone[0]]!r} holds prompt {alone[0]} alone, so it has nothing to draw, "
                    "which a strict sampler refuses. Give more prompts or a coarser class, or let it draw itself: do not ask for strict."
                )
        return uniform(words.drawn(), rows, classes)


@dataclasses.dataclass(frozen=True)
class Fixed(AbstractSampler):
    """A given datum: one for all examples, by number, or one for each datum of the dataset."""

    datum: int | Sequence[int] | Int[np.ndarray, " batch"]

    def __post_init__(self):
        kept = np.asarray(self.datum)
        if not np.issubdtype(kept.dtype, np.integer) or kept.ndim > 1:
            raise TypeError(f"Fixed: expected the number of a prompt, or one for each prompt, got {self.datum!r}.")
        object.__setattr__(self, "datum", tuple(kept.tolist()) if kept.ndim else int(kept))

    def draw(self, words, rows, data):
        given, count = np.asarray(self.datum), len(data)
        if given.ndim and len(given) != count:
            raise ValueError(f"Fixed: expected one number, or one for each of the {count} prompts, got {len(given)}.")
        if given.min() < 0 or given.max() >= count:
            raise ValueError(f"Fixed: there are prompts 0 to {count - 1}, got {self.datum!r}.")
        found = np.broadcast_to(given, (count,))[rows]
        if (wrong := data.alike[found] != data.alike[rows]).any():
            raise ValueError(
                f"Fixed: prompt {found[wrong][0]} takes the place of prompt {rows[wrong][0]}, and their padding is not at the same "
                "positions. Give one of the same length."
            )
        return found


@dataclasses.dataclass(frozen=True)
class Pool(AbstractSampler):
    """Any of a few data, `size` of them drawn for all examples of a sample."""

    size: int

    def __post_init__(self):
        check_count("Pool: size", "data are drawn for all examples of a sample", self.size)

    def draw(self, words, rows, data):
        which = (words.drawn("which").astype(np.uint64) * np.uint64(self.size)) >> np.uint64(32)
        members = dataclasses.replace(words, shape=(len(rows), self.size)).drawn("pool")
        return uniform(np.take_along_axis(members, which.astype(np.int64), axis=1), rows, data.alike)


@dataclasses.dataclass(frozen=True)
class Shared(AbstractSampler):
    """The draws of another sampler, the same ones in all claims that share its name: two claims then get the same datum in place of the
    same datum.

    >>> together = jc.scrubbing.Shared(jc.Unconditional(), "heads")
    """

    sampler: AbstractSampler
    name: str

    def __post_init__(self):
        check_sampler("Shared: sampler", self.sampler)
        check_kind("Shared: name", self.name, str, "a name")

    def draw(self, words, rows, data):
        return self.sampler.draw(words.at(f"shared {self.name}"), rows, data)


def check_sampler(name: str, value: Any) -> None:
    """TypeError unless it is a sampler."""
    instead = "a sampler such as jc.Exact(), jc.Unconditional() or jc.Conditional(fn)"
    check_kind(name, value, AbstractSampler, instead)


@ft.partial(jax.jit, static_argnames="shape")
def _words(key, digest: UInt32[Array, "2"], *, shape: tuple[int, int]) -> UInt32[Array, "sample batch"]:
    key = jax.random.fold_in(jax.random.fold_in(key, digest[0]), digest[1])
    return jax.random.bits(key, shape, jnp.uint32)
