"""The Jacobian lens: for each layer the mean map from its residual stream to the last one."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._checks import check_choice, check_chosen, check_count, check_kind, check_list
from .._figures import COLOURED_BY, written
from .._fingerprint import difference, fingerprint
from .._labels import with_labels
from .._run import check_token_ids, check_tokens
from .._shown import Shown
from .._tokens import token_texts
from .._words import counted
from ..models import check_known, Transformer
from ..runs import Corpus, corpus_prompts
from ._plot import draw_readout
from ._readout import LensReadout, ranks_table, read_layers
from ._running import joined, Running
from ._settings import LensSettings
from ._store import check_suffix, read, Stored, write


if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@with_labels("settings", "n_prompts", "n_skipped", "history")
class JacobianLens(Shown, eqx.Module):
    r"""Mean Jacobians $J_l = E[\partial h_{target} / \partial h_l]$ of the residual stream, by which a layer's residual stream is carried
    to the target layer and read there: $\mathrm{lens}_l(h) = \mathrm{unembed}(\mathrm{norm}_f(J_l h))$.

    **Attributes:**

    - `means[l]`: the running mean of layer `l`, of which `J` is read.
    - `centres[l]` `[cluster d_model]`: of a lens with one mean for each cluster of residual streams; otherwise `None`.
    - `n_prompts`: how many prompts are in it; `n_skipped`: how many were too short.
    - `settings`: what it was fitted with.
    - `history`: for each prompt that had a part its number, how large its largest Jacobian was (Frobenius, by the root of `d_model`), and
      how far it moved the means (the most of any layer, relative): a prompt that stands out in either is worth a look. Empty where a file
      does not hold it.

    **Reference:** Gurnee et al. 2026, "Verbalizable Representations Form a Global Workspace in Language Models".
    """

    LABELS: ClassVar = ("settings", "n_prompts", "n_skipped", "history")

    means: dict[int, Running]
    settings: LensSettings = eqx.field(static=True)
    n_prompts: int = eqx.field(static=True)
    n_skipped: int = eqx.field(static=True, default=0)
    centres: dict[int, Float[Array, "cluster d_model"]] | None = None
    history: tuple[tuple[int, float, float], ...] = eqx.field(static=True, default=())

    @property
    def layers(self) -> tuple[int, ...]:
        """The source layers, in order."""
        return tuple(sorted(self.means))

    @property
    def target_layer(self) -> int:
        """The layer to whose output the maps lead; negative if the lens' file counts it from the end, -1 for the last."""
        return self.settings.target_layer

    @property
    def d_model(self) -> int:
        return next(iter(self.means.values())).mean.shape[-1]

    @property
    def J(self) -> dict[int, Float[Array, "..."]]:
        """For each layer the mean Jacobian `[out in]`; of a lens by clusters `[cluster out in]`, and by heads `[path out in]`, whose last
        path is what passes all heads, and whose sum is the mean Jacobian.
        """
        return {layer: self._one(running.mean) for layer, running in self.means.items()}

    @property
    def standard_error(self) -> dict[int, Float[Array, "..."]]:
        r"""For each layer the standard error of the mean over prompts, $\sqrt{\sum_{ij} \mathrm{se}(J_{l,ij})^2}$, in the units of
        $\|J_l\|_F$; by clusters or heads an array. NaN for one prompt, and of files that do not hold it.
        """
        return {layer: self._one(running.standard_error) for layer, running in self.means.items()}

    @property
    def relative_error(self) -> dict[int, Float[Array, "..."]]:
        """`standard_error` by the size (Frobenius) of the mean."""
        return {layer: self._one(running.relative_error) for layer, running in self.means.items()}

    def _one(self, x: Float[Array, "average ..."]) -> Float[Array, "..."]:
        return x[0] if self.settings.average == "corpus" else x

    def readout(
        self,
        model: Transformer,
        tokens: Int[Array | np.ndarray, " seq"],
        top_k: int = 10,
        *,
        ranks_of: Sequence[int] | Int[Array | np.ndarray, " token"] = (),
        logit_lens: bool = False,
    ) -> LensReadout:
        """Reads a prompt at every layer: the tokens that are strongest there, and the rank of the token that follows, beside its rank by
        the logit lens. A lens of clusters takes the map of the nearest centre at each position.

        **Arguments:** - `tokens` `[seq]`. - `top_k`: how many tokens. - `ranks_of`: tokens whose ranks and logits are asked for. -
        `logit_lens`: show what the logit lens reads instead, for comparison.

        **Raises:** `ValueError` for a model that the lens is not of, and ids outside the vocabulary.

        >>> lens = jc.fit_lens(model, [tokens], skip_first=1)
        >>> lens.readout(model, tokens, top_k=3).tokens.shape  # [layer seq top_k]
        (4, 6, 3)
        """
        target = self.check_model("JacobianLens.readout", model)
        check_tokens(model, tokens)
        check_count("JacobianLens.readout: top_k", "tokens", top_k)
        if top_k > len(model.b_U):
            raise ValueError(
                f"JacobianLens.readout: top_k is {top_k}, and there are logits of {len(model.b_U)} tokens."
            )
        chosen = check_chosen("JacobianLens.readout: ranks_of", "tokens", ranks_of)
        chosen.check_among("JacobianLens.readout: ranks_of", "tokens with logits", len(model.b_U))
        check_token_ids(model, chosen.indices, len(model.b_U))
        given = {"top_k": top_k, "chosen": chosen.indices, "logit_lens": logit_lens}
        return read_layers(model, np.asarray(tokens), self._maps(), self.centres, target, **given)

    def next_token(self, model: Transformer, prompts: Corpus) -> "pd.DataFrame":
        """How well each layer's readout knows the token that follows, over prompts, by the lens and by the logit lens: a row a layer, with
        the median rank (1 is the largest logit), the mean logarithm of the rank, and the share of positions where it is the first.

        A lens is worth having where it beats the logit lens, so look at this before reading anything through it.
        """
        target = self.check_model("JacobianLens.next_token", model)
        given = {"top_k": 1, "chosen": np.zeros(0, int), "logit_lens": False}
        found = [
            read_layers(model, tokens, self._maps(), self.centres, target, **given)
            for tokens in corpus_prompts("JacobianLens.next_token", model, prompts)
            if len(tokens) > 1
        ]
        if not found:
            raise ValueError("JacobianLens.next_token: no prompt has two tokens, so that one follows another.")
        ranks = lambda name: np.concatenate([np.asarray(getattr(each, name)) for each in found], axis=1)
        return ranks_table(found[0].layers, ranks("next_rank"), ranks("logit_lens_rank"))

    def plot(
        self,
        model: Transformer,
        tokens: Int[Array | np.ndarray, " seq"],
        tokenizer: Any = None,
        *,
        colour: str = "rank",
        logit_lens: bool = False,
        path: str | Path | None = None,
    ) -> "Figure":
        """Draws what `readout` reads: layers by positions, in each cell the strongest token. `jc.draw_lens` draws a readout that is there.

        **Arguments:** - `tokenizer`: whatever decodes token ids; without one the ids are shown. - `colour`: by the `"rank"` of the token
        that follows, dark where it is the first; by the `"entropy"`, dark where it is small; or by the `"probability"` of the strongest
        token. - `logit_lens`: as in `readout`. - `path`: also writes the picture, by its suffix `.svg`, `.pdf` or `.png`.

        **Returns:** a matplotlib figure, which is part of no global state.

        >>> lens = jc.fit_lens(model, [tokens], skip_first=1)
        >>> type(lens.plot(model, tokens, tokenizer, path="lens.svg")).__name__
        'Figure'
        """
        target = written("JacobianLens.plot", path)
        check_choice("JacobianLens.plot: colour", colour, COLOURED_BY)
        read = self.readout(model, tokens, 1, logit_lens=logit_lens)
        of = f"{self.settings.rule} Jacobians, {counted(self.n_prompts, 'prompt')}"
        title = f"{'Logit lens' if logit_lens else 'Jacobian lens'} of {model.name}{'' if logit_lens else f': {of}'}; read on 1 prompt"
        texts = token_texts(tokenizer, np.asarray(tokens))
        return draw_readout(read, target, tokens=texts, tokenizer=tokenizer, title=title, colour=colour)

    def _maps(self) -> Mapping[int, Float[Array, "map d_model d_model"]]:
        """The map of each layer, or of each of its clusters."""
        whole = (lambda mean: mean.sum(0)[None]) if self.settings.average == "head" else (lambda mean: mean)
        return {layer: whole(running.mean) for layer, running in self.means.items()}

    def check_model(self, name: str, model: Transformer) -> int:
        """Checks that the lens may be of this model: of its weights, where the lens says which, or at least of its shape. `name` is what an
        error begins with.

        **Returns:** the target layer, counted from the first.

        **Raises:** `ValueError` for another model.
        """
        check_kind(f"{name}: model", model, Transformer, "a model, as jc.from_pretrained gives one")
        check_known(name, model, "ln_final")
        instead = "Fit a lens of this model: jc.fit_lens(model, prompts)."
        target = self.settings.counted(model.n_layers).target_layer
        if self.d_model != model.d_model or not self.layers[-1] <= target < model.n_layers:
            last = max(self.layers[-1], self.target_layer)
            on = f" and on to layer {self.target_layer} from the end" if self.target_layer < 0 else ""
            raise ValueError(
                f"{name}: the lens is of residual streams of width {self.d_model}, up to layer {last}{on}, and {model.name} has "
                f"width {model.d_model} and {model.n_layers} layers. {instead}"
            )
        recorded = self.settings.fingerprint
        if recorded and (other := difference(recorded, fingerprint(model))):
            raise ValueError(
                f"{name}: the lens was fitted to {self.settings.model}{other} than {model.name}'s. {instead}"
            )
        return target

    def save(self, path: str | Path, *, dtype: str | None = None) -> None:
        """Writes the lens: as `.safetensors` with all that it knows, in float32; or as `.pt` in the layout that is published, in float16
        and without standard errors.

        **Arguments:** - `dtype`: `"float32"` or `"float16"`, instead of these.

        **Raises:** `ValueError` for another suffix, and for entries that the dtype cannot hold; `ImportError` for `.pt` without PyTorch.
        """
        if dtype not in (None, "float32", "float16"):
            raise ValueError(f"JacobianLens.save: dtype must be 'float32' or 'float16', got {dtype!r}.")
        about = self.means, self.settings, self.n_prompts, self.n_skipped, self.centres
        stored = Stored(*about, history=self.history)
        write(check_suffix("JacobianLens.save: path", path), stored, dtype=dtype)

    @staticmethod
    def load(path: str | Path) -> "JacobianLens":
        """Reads a lens, or a checkpoint of one, that `save` or `jc.fit_lens` wrote or that others published: weights only, never a pickle
        that could run code.

        **Raises:** `ValueError` for another file; `ImportError` for a PyTorch file without PyTorch.
        """
        stored = read(path)
        about = stored.means, stored.settings, stored.n_prompts, stored.n_skipped, stored.centres
        return JacobianLens(*about, stored.history)

    @staticmethod
    def merge(lenses: Sequence["JacobianLens"]) -> "JacobianLens":
        """The lens of all prompts that several lenses were fitted to: their means weighed by their prompts, with the standard error of all.

        **Raises:** `ValueError` for lenses of other layers, widths, models or settings, which says what differs, and for a lens
        that is given twice; `TypeError` for what is no lens.

        >>> halves = [jc.fit_lens(model, [tokens[:n]], skip_first=1) for n in (5, 6)]
        >>> jc.JacobianLens.merge(halves).n_prompts
        2
        """
        (first, *others), settings = _checked(lenses)
        means = first.means
        for lens in others:
            means = {layer: joined(means[layer], lens.means[layer]) for layer in means}
        prompts, skipped = (sum(getattr(lens, name) for lens in lenses) for name in ("n_prompts", "n_skipped"))
        return JacobianLens(means, settings, prompts, skipped, first.centres)


def _checked(lenses: Sequence[JacobianLens]) -> tuple[list[JacobianLens], LensSettings]:
    """The lenses as a list, and what they say of how they were fitted. **Raises:** `ValueError` unless they are means of the same thing."""
    given = check_list("JacobianLens.merge", "lenses", lenses)
    if not given:
        raise ValueError("JacobianLens.merge: expected at least one lens, got none.")
    for number, lens in enumerate(given):
        check_kind(f"JacobianLens.merge: lens {number}", lens, JacobianLens, "a lens")
    known = given[0].settings
    for number, lens in enumerate(given):
        differ = _differ(given[0], known, lens)
        if differ:
            raise ValueError(
                f"JacobianLens.merge: lens {number} and those before it differ in {differ}. Lenses can be merged that were fitted to the "
                "same model in the same way."
            )
        known = known.with_(lens.settings)
    for (one, first), (number, lens) in itertools.combinations(enumerate(given), 2):
        if _same_content(first, lens):
            raise ValueError(
                f"JacobianLens.merge: lens {one} and lens {number} hold the same means, so their prompts would count twice, and the "
                "standard error would come out too small. Give each part once."
            )
    return given, known


def _same_content(first: JacobianLens, other: JacobianLens) -> bool:
    return first.n_prompts == other.n_prompts and all(
        jnp.array_equal(running.mean, other.means[layer].mean) for layer, running in first.means.items()
    )


def _differ(first: JacobianLens, known: LensSettings, other: JacobianLens) -> str | None:
    """Says in what a lens differs from the first, or from what is `known` of those before it, that cannot be one with them, with both
    values; `None` if nothing keeps them apart.
    """
    for name in ("d_model", "layers"):
        if getattr(first, name) != getattr(other, name):
            return f"{name}: {getattr(first, name)} and {getattr(other, name)}"
    name = known.first_difference(other.settings)
    if name is not None:
        return f"{name}: {getattr(known, name)} and {getattr(other.settings, name)}"
    centres = [lens.centres or {} for lens in (first, other)]
    same = centres[0].keys() == centres[1].keys() and all(
        jnp.array_equal(centres[0][layer], centres[1][layer]) for layer in centres[0]
    )
    return None if same else "the centres of their clusters"
