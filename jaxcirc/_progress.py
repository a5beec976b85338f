"""A bar for what takes long."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ._typing import Progress


@contextmanager
def progress_bar(**options: Any) -> Iterator[Progress]:
    """Draws how far long work is, in a notebook as a widget, else as text on standard error; for `progress=` of any verb that takes it.

    Each stage of the work gets a bar of its own, when it begins.

    **Arguments:** - `options`: of `tqdm`, such as `leave=False` or `disable=None`.

    >>> prompts = jc.data.subject_verb(tokenizer, 4, kind="rc", seed=0)
    >>> with jc.progress_bar(disable=True) as progress:
    ...     circuit = jc.discover(
    ...         model, saes, prompts.clean, prompts.corrupt, prompts.metric(), node_threshold=0.1, edge_threshold=0.01, progress=progress
    ...     )
    """
    from tqdm.auto import tqdm

    look = {"bar_format": "{desc} {bar:24} {n}/{total}  {elapsed}", "file": sys.stderr}
    bars: dict[str, tqdm] = {}

    def report(done: int, of: int, stage: str) -> None:
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[stage] = tqdm(total=of, desc=f"{stage:<6}", **look | options)
        bars[stage].update(done - bars[stage].n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()
