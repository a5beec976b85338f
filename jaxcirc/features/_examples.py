"""Where one latent is on, over a corpus: the prompts on which it is strongest, and how strong it is how often."""

import dataclasses
import heapq
import itertools

import numpy as np
from jaxtyping import Float, Int

from .._sites import Site
from .._typing import Progress
from ..models import Transformer
from ..runs import Corpus, corpus_batches
from ..saes import AbstractDictionary
from ._unit_acts import tokens_together, unit_activations


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A prompt and how strong the latent is at each of its tokens."""

    tokens: Int[np.ndarray, " seq"]
    acts: Float[np.ndarray, " seq"]

    @property
    def position(self) -> int:
        """Where it is strongest."""
        return int(np.argmax(np.abs(self.acts)))


@dataclasses.dataclass(frozen=True, eq=False)
class Firing:
    """The strongest examples, the strongest first; every activation other than 0; and of how many tokens and prompts that is."""

    examples: tuple[Example, ...]
    active: Float[np.ndarray, " n"]
    n_tokens: int
    n_prompts: int


def firing(
    verb: str,
    model: Transformer,
    site: Site,
    sae: AbstractDictionary,
    unit: int,
    corpus: Corpus,
    most: int,
    progress: Progress | None,
) -> Firing:
    """Runs a corpus in batches; of it nothing is held but the `most` strongest prompts, each once, and the activations."""
    best: list[tuple[float, int, Example]] = []
    seen: set[bytes] = set()
    active, n_tokens, n_prompts, number = [], 0, 0, itertools.count()
    known = len(corpus) if hasattr(corpus, "__len__") else 0  # pyright: ignore[reportArgumentType]
    report = progress or (lambda done, of, stage: None)
    for batch in corpus_batches(verb, model, corpus, None, None, tokens_together({site: sae})):
        acts = unit_activations(model, {site: sae}, batch.tokens, batch.mask, {site: [unit]})[site][..., 0]
        for tokens, real, own in zip(*(x[: batch.prompts] for x in (batch.tokens, batch.mask, acts)), strict=True):
            tokens, own = tokens[real], own[real]
            n_tokens += len(own)
            active.append(own[own != 0])
            strength = float(np.abs(own).max())
            if not strength > 0 or tokens.tobytes() in seen or (len(best) == most and strength <= best[0][0]):
                continue
            seen.add(tokens.tobytes())
            # Of equals the first prompt stays: its number is the higher here.
            push = heapq.heappush if len(best) < most else heapq.heappushpop
            push(best, (strength, -next(number), Example(tokens, own)))
        n_prompts += batch.prompts
        report(n_prompts, max(known, n_prompts), "prompts")
    ordered = tuple(example for *_, example in sorted(best, key=lambda each: each[:2], reverse=True))
    return Firing(ordered, np.concatenate(active), n_tokens, n_prompts)
