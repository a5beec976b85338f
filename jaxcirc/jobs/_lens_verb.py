"""A batch job that reads prompts through a Jacobian lens."""

import dataclasses
from typing import Any, ClassVar

import numpy as np

from .._checks import check_kind
from .._fingerprint import fingerprint
from ..data import Prompts
from ..lens import JacobianLens
from ..models import Transformer
from ._verbs import AbstractVerb, Columns, finite, ROW, Saes


@dataclasses.dataclass(frozen=True)
class JobOfLens(AbstractVerb):
    """`JacobianLens.readout` at the end of the clean prompt: a row for each layer, the lens's target last, with the rank of the answer, 1
    for the largest logit, by the lens and by the logit lens, and the answer's logit less the foil's as the lens reads them.

    **Raises:** `ValueError` without a lens.
    """

    name: ClassVar[str] = "lens"
    columns: ClassVar[dict[str, str]] = {
        "layer": "int",
        "rank": "value",
        "logit_lens_rank": "value",
        "difference": "value",
    }

    lens: JacobianLens | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self):
        if self.lens is None:
            raise ValueError(f"{self.name}: there is no lens. Give one that jc.fit_lens made: lens=….")
        check_kind(f"{self.name}: lens", self.lens, JacobianLens, "one that jc.fit_lens made")

    def prepared(self, model: Transformer) -> Transformer:
        assert self.lens is not None
        self.lens.check_model(self.name, model)
        return model

    def settings(self) -> dict[str, Any]:
        assert self.lens is not None
        about = dataclasses.asdict(self.lens.settings)
        return {"lens": about | {"n_prompts": self.lens.n_prompts, "maps": fingerprint(self.lens.J)}}

    def names(self, model: Transformer, saes: Saes) -> dict[str, list[str]]:
        return {}

    def rows(self, model: Transformer, saes: Saes, prompts: Prompts) -> Columns:
        assert self.lens is not None
        mask = None if prompts.mask is None else np.asarray(prompts.mask)
        found = []
        for row, tokens in enumerate(np.asarray(prompts.clean)):
            tokens = tokens if mask is None else tokens[mask[row]]
            ends = [int(np.asarray(ids)[row]) for ids in (prompts.answer, prompts.foil)]
            read = self.lens.readout(model, tokens, 1, ranks_of=ends)
            logits = np.asarray(read.logits_of[:, -1])
            layers = np.asarray(read.layers, np.int32)
            found.append(
                {
                    ROW: np.full(len(layers), row, np.int32),
                    "layer": layers,
                    "rank": np.asarray(read.ranks[:, -1, 0]),
                    "logit_lens_rank": np.asarray(read.logit_lens_ranks[:, -1, 0]),
                    "difference": finite("Differences of logits", logits[:, 0] - logits[:, 1]),
                }
            )
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}
