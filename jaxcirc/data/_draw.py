"""Drawing prompts by chance, each once."""

from collections.abc import Callable, Hashable
from typing import TypeVar

from .._checks import check_count


SPLITS = ("all", "train", "held_out")
MOST = 100_000  # which takes some ten seconds, to write out and to encode

T = TypeVar("T")


def check_number(verb: str, n: int, there_are: int, of: str) -> None:
    """ValueError unless there are as many as `n` different prompts of those asked for, and they are made in reasonable time."""
    check_count(f"{verb}: n", "prompts to make", n)
    if n > there_are:
        raise ValueError(
            f"{verb}: there are {there_are} different prompts with {of}; got n={n}. Ask for {there_are} or fewer; to have some again, "
            "index the prompts: prompts[[0, 0, 1]]."
        )
    if n > MOST:
        raise ValueError(
            f"{verb}: at most {MOST} prompts are made at once; got n={n}. Make several sets, each with a seed of its own."
        )


def distinct(draw: Callable[[], T], n: int, *, key: Callable[[T], Hashable]) -> list[T]:
    """Collects the first `n` draws of which no two have one `key`; there have to be as many."""
    drawn_by_key: dict[Hashable, T] = {}
    while len(drawn_by_key) < n:
        drawn = draw()
        drawn_by_key.setdefault(key(drawn), drawn)
    return list(drawn_by_key.values())
