"""The text of a model that is steered beside that of the same model, left alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import PRNGKeyArray

from .._edits import AbstractEdit
from .._run import NOTHING
from .._sites import Site
from .._typing import Prompt
from ..attribution_graphs import Change
from ..attribution_graphs._given import Transcoders
from ..models import Transformer
from ..saes import Saes
from ._generate import prepared
from ._result import Generation


class Comparison(eqx.Module):
    """Two texts behind one prompt, drawn with one key: `unsteered`, and `steered`. `print` shows them."""

    unsteered: Generation
    steered: Generation

    @property
    def first_difference(self) -> int | tuple[int | None, ...] | None:
        """The number of the first new token in which they differ; `None` where they are the same; of several samples a tuple."""
        pairs = zip(self.unsteered.samples, self.steered.samples, strict=True)
        found = tuple(_first(np.asarray(a.tokens), np.asarray(b.tokens)) for a, b in pairs)
        return found[0] if self.steered.tokens.ndim == 1 else found

    def __str__(self) -> str:
        lines = []
        for number, pair in enumerate(zip(self.unsteered.samples, self.steered.samples, strict=True)):
            if self.steered.tokens.ndim > 1:
                lines.append(f"sample {number}")
            for name, each in zip(("unsteered", "steered"), pair, strict=True):
                shown = np.asarray(each.tokens)[np.asarray(each.mask)].tolist() if each.text is None else each.text
                lines.append(f"{name:<9}  {shown!r}")
        return "\n".join(lines)


def compare(
    model: Transformer,
    tokenizer: Any,
    prompt: Prompt,
    n: int = 20,
    *,
    edits: Mapping[Site, AbstractEdit] | Mapping[str, AbstractEdit] = NOTHING,
    saes: Saes = NOTHING,
    transcoders: Transcoders = NOTHING,
    changes: Sequence[Change] = (),
    temperature: float = 0.0,
    key: PRNGKeyArray | None = None,
    samples: int | None = None,
    stop: int | Sequence[int] | None = None,
    bos: bool | None = None,
) -> Comparison:
    """Goes on from a prompt twice, with the same key: as the model does by itself, and with edits and changes.

    Takes what `jc.generate` takes. Both are one program; in the unsteered run dictionaries are spliced in, too, which changes nothing but
    rounding.

    **Returns:** a `Comparison`: `unsteered` and `steered`, each a `Generation`.

    **Raises:** as `jc.generate`, and `ValueError` without edits and changes.

    >>> edits = {"blocks.2.hook_resid_post": jc.At(-1, jc.Scale(-1.0))}
    >>> both = jc.generation.compare(model, tokenizer, "The teachers that the doctor", 3, edits=edits)
    >>> both.first_difference
    0
    """
    if not edits and not changes:
        raise ValueError(
            "compare: nothing is steered. Give edits or changes; for the model's own text call jc.generate."
        )
    asked = prepared(
        "compare",
        model,
        tokenizer,
        prompt,
        n,
        edits=edits,
        saes=saes,
        transcoders=transcoders,
        changes=changes,
        temperature=temperature,
        key=key,
        samples=samples,
        stop=stop,
        bos=bos,
    )
    return Comparison(asked.text(asked.inactive), asked.text(asked.acting))


def _first(a: np.ndarray, b: np.ndarray) -> int | None:
    differ = np.flatnonzero(a != b)
    return int(differ[0]) if len(differ) else None
