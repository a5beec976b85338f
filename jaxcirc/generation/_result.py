"""`Generation`: what follows a prompt."""

from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._labels import with_labels
from .._shown import Shown


@with_labels("text")
class Generation(Shown, eqx.Module):
    """What follows a prompt. Of several samples each array but the prompt's has an axis for them in front.

    **Attributes:**

    - `tokens` `[n]`: the new ones alone. Behind a token at which generation stopped, that one again.
    - `log_probs` `[n]`: the log-probability of each where it was chosen, in nats and at temperature 1; 0 behind a stop.
    - `mask` `[n]`: False behind a stop.
    - `prompt` `[seq]`: the tokens that they follow.
    - `text`: what the new tokens read, without the one that stopped it; of several samples a tuple; `None` without a tokenizer.
    """

    LABELS: ClassVar = ("text",)  # what is said of the arrays; no program is made anew for another text

    tokens: Int[Array, "*world new"]
    log_probs: Float[Array, "*world new"]
    mask: Bool[Array, "*world new"]
    prompt: Int[Array, " seq"]
    text: Any = eqx.field(static=True, default=None)

    @property
    def samples(self) -> "tuple[Generation, ...]":
        """Each sample by itself; this one alone where there are not several."""
        if self.tokens.ndim == 1:
            return (self,)
        texts = self.text if isinstance(self.text, tuple) else (None,) * len(self.tokens)
        arrays = zip(self.tokens, self.log_probs, self.mask, strict=True)
        return tuple(Generation(*each, self.prompt, text) for each, text in zip(arrays, texts, strict=True))


def read_text(
    tokenizer: Any, prompt: Sequence[int], tokens: np.ndarray, mask: np.ndarray, stop: Sequence[int]
) -> str | tuple[str, ...]:
    """Decodes new tokens, without the one that stopped them. They are read behind their prompt: by themselves some tokenizers drop the
    space that a text begins with.
    """
    if tokens.ndim > 1:
        return tuple(str(read_text(tokenizer, prompt, *each, stop)) for each in zip(tokens, mask, strict=True))
    new = tokens[mask].tolist()
    new = new[:-1] if new and new[-1] in stop else new
    before, whole = (tokenizer.decode([*prompt, *more]) for more in ((), new))
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def shortened_to(n: int, found: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Cuts what was written to the `n` tokens that were asked for, on the host: no program for each length."""
    return tuple(jax.device_put(np.asarray(x)[..., :n]) for x in found)
