"""The page of one latent: where it is on, what it does to the logits, and which others are like it or joined to it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._checks import check_count, check_kind, check_list
from .._fingerprint import fingerprint
from .._precision import wide
from .._run import check_dictionaries, check_model, site_shapes
from .._shown import Shown
from .._sites import did_you_mean, Site
from .._tokens import together, token_text
from .._typing import Progress
from ..components import decode, Decoded
from ..components._decode import is_decoded
from ..data._encode import beginning, begun, check_tokenizer
from ..features import MeanEdges
from ..features._examples import Example, Firing, firing
from ..models import Transformer
from ..runs import Corpus
from ..saes import AbstractDictionary, anonymous
from ._feature_page import feature_html
from ._html import framed, write_page


if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FeaturePage(Shown):
    """What is known of one latent, as tables and as a page. Made by `jc.view.feature`.

    **Attributes:**

    - `site`, `unit`: which one. `about`: of which model and dictionary.
    - `examples`: the prompts on which it is strongest, the strongest first, each with `tokens` and `acts` `[seq]`.
    - `active` `[n]`: its activations other than 0, at `n_tokens` tokens of `n_prompts` prompts.
    - `decoded`: what a step of 1 along its decoder's row does to each logit, with the final norm's scale 1, less their mean; `None` where
      the site reaches the residual stream by more than a matrix.
    - `cosines` `[d_sae]`: of its decoder's row with every other.
    - `edges`: a row a mean edge, the largest of each table: `side` (`"from"`, `"to"`), `site`, `unit`, `value`.
    - `texts`: how each token id on the page reads by itself; `pieces`: how each example reads, `(tokens, text)` for each piece of it: one
      token, or some that share a letter.
    """

    site: Site
    unit: int
    about: dict[str, str]
    examples: tuple[Example, ...]
    active: Float[np.ndarray, " n"]
    n_tokens: int
    n_prompts: int
    decoded: Decoded | None
    cosines: Float[np.ndarray, " d_sae"]
    edges: "pd.DataFrame"
    texts: dict[int, str] = dataclasses.field(repr=False)
    pieces: tuple[tuple[tuple[int, str], ...], ...] = dataclasses.field(repr=False)
    most: int = 10

    @property
    def share_active(self) -> float:
        """The share of tokens at which the latent is on."""
        return len(self.active) / self.n_tokens

    @property
    def logits(self) -> "pd.DataFrame":
        """The output tokens that it raises most, and those that it lowers most: `token`, `id`, `effect`."""
        import pandas as pd

        if self.decoded is None:
            return pd.DataFrame({"token": [], "id": [], "effect": []})
        k = min(self.most, self.decoded.logits.shape[-1] // 2)
        parts = [tuple(map(np.asarray, part)) for part in (self.decoded.top(k), self.decoded.bottom(k))]
        ids, effects = (np.concatenate(each) for each in zip(*parts, strict=True))
        return pd.DataFrame({"token": [self.texts[int(i)] for i in ids], "id": ids, "effect": effects})

    @property
    def neighbours(self) -> "pd.DataFrame":
        """The latents whose decoder's rows are most alike its own, by cosine, and those most opposed: `unit`, `cosine`."""
        import pandas as pd

        others = np.flatnonzero(np.isfinite(self.cosines) & (np.arange(len(self.cosines)) != self.unit))
        order = others[np.argsort(-self.cosines[others], kind="stable")]
        k = min(self.most, len(order) // 2)
        chosen = np.concatenate([order[:k], order[len(order) - k :][::-1]])
        return pd.DataFrame({"unit": chosen, "cosine": self.cosines[chosen]})

    def to_html(self, path: str | Path) -> None:
        """Writes a page that needs no network. **Raises:** `ValueError` unless it is named `.html`."""
        write_page(path, feature_html(self))

    def _repr_html_(self) -> str:
        return framed(feature_html(self), 720)


def feature(
    sae: AbstractDictionary,
    unit: int,
    texts: Sequence[str] | Corpus,
    *,
    model: Transformer,
    tokenizer: Any,
    site: Site | str | None = None,
    edges: MeanEdges | Sequence[MeanEdges] = (),
    most: int = 10,
    bos: bool | None = None,
    progress: Progress | None = None,
) -> FeaturePage:
    """Looks at one latent: the texts on which it is strongest, how strong it is how often, what it does to the logits by itself, which
    others write alike, and which it is joined to.

    **Arguments:**

    - `sae`, `unit`: the dictionary, and the latent's number.
    - `texts`: texts, or prompts of token ids as `jc.data.load_texts` gives them. A text longer than the context is cut into several.
    - `model`, `tokenizer`: of the dictionary. `tokenizer=None` takes prompts of token ids, and shows them as such.
    - `site`: where the dictionary writes, if it does not say it.
    - `edges`: mean edges from or to this dictionary, `jc.features.mean_edges`, whose largest are listed.
    - `most`: how many examples, tokens, neighbours and edges are listed on each side.
    - `bos`: whether the beginning-of-text token is put before each text, by the rule of the model's family unless given.

    **Returns:** a `FeaturePage`: `.to_html(path)`, or shown in a notebook; and its tables.

    **Raises:** `ValueError` for a latent that there is not, no texts, a dictionary that does not say its site, and edges of another one.

    The texts are run in batches up to the dictionary's site, and nothing of them is kept but the strongest and the activations.

    >>> site = jc.Site.parse("blocks.1.hook_mlp_out")
    >>> page = jc.view.feature(saes[site], 4, ["The teachers that the doctor likes"], model=model, tokenizer=tokenizer)
    >>> page.to_html("feature.html")
    """
    verb = "feature"
    check_model(model)
    check_kind(f"{verb}: sae", sae, AbstractDictionary, "a dictionary, as jc.load_sae gives one")
    check_count(f"{verb}: most", "are listed", most)
    place = _place(verb, model, sae, site)
    whole = isinstance(unit, int | np.integer) and not isinstance(unit, bool)
    if not whole or not 0 <= unit < sae.d_sae:
        raise ValueError(f"{verb}: the units at `{place}` are 0 to {sae.d_sae - 1}; got {unit!r}.")
    given = [edges] if isinstance(edges, MeanEdges) else check_list(f"{verb}: edges", "mean edges", edges)
    joined = _edges(verb, sae, place, int(unit), given, most)
    corpus = _corpus(verb, model, tokenizer, texts, bos)
    found = firing(verb, model, place, sae, int(unit), corpus, most, progress)
    decoded = _decoded(model, sae, place, int(unit))
    return FeaturePage(
        site=place,
        unit=int(unit),
        about={"model": model.name, "dictionary": sae.origin},
        examples=found.examples,
        active=found.active,
        n_tokens=found.n_tokens,
        n_prompts=found.n_prompts,
        decoded=decoded,
        cosines=_cosines(sae, int(unit)),
        edges=joined,
        texts=_texts(tokenizer, found, decoded, most),
        pieces=tuple(tuple(together(tokenizer, each.tokens)) for each in found.examples),
        most=most,
    )


def _place(verb: str, model: Transformer, sae: AbstractDictionary, site: Site | str | None) -> Site:
    place = sae.site if site is None else Site.parse(site)
    if place is None:
        raise ValueError(f"{verb}: the dictionary does not say at which site it is. Give site=….")
    shapes = site_shapes(model, 1)
    for each in (place, place if sae.reads is None else sae.reads):
        if each not in shapes:
            hint = did_you_mean(str(each), map(str, shapes))
            raise ValueError(f"{verb}: no site `{each}` in {model.name} with {model.n_layers} layers. {hint}")
    check_dictionaries(model, {place: sae})
    width = lambda each: int(np.prod(shapes[each].shape[1:]))
    sae.check_width(place, width(place if sae.reads is None else sae.reads), width(place))
    return place


def _corpus(verb: str, model: Transformer, tokenizer: Any, texts: Any, bos: bool | None) -> Any:
    """Texts as prompts that the context has room for; what is no list of texts as it came."""
    if isinstance(texts, str):
        raise TypeError(f"{verb}: expected a list of texts, got one. Write [{texts[:20]!r}].")
    if tokenizer is not None:
        check_tokenizer(verb, tokenizer)
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return texts
    if not texts:
        raise ValueError(f"{verb}: there are no texts. Give at least one.")
    if tokenizer is None:
        raise TypeError(f"{verb}: these are texts, and there is no tokenizer. Give jc.load_tokenizer(…), or token ids.")
    start = beginning(tokenizer, bos)
    room = model.n_ctx - len(start)
    encoded = [list(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    cut = [ids[first : first + room] for ids in encoded for first in range(0, len(ids), room)]
    if not cut:
        raise ValueError(f"{verb}: the texts are empty. Give at least one that is not.")
    return [np.asarray(begun(ids, start)[: model.n_ctx], np.int32) for ids in cut]


def _decoded(model: Transformer, sae: AbstractDictionary, site: Site, unit: int) -> Decoded | None:
    if not is_decoded(model, site):
        return None
    one = jnp.zeros(sae.d_sae, model.activation_dtype).at[unit].set(1)
    return decode(model, one, site.acts, saes={site: sae})


def _cosines(sae: AbstractDictionary, unit: int) -> Float[np.ndarray, " d_sae"]:
    """NaN for rows of nothing but zeros."""
    rows = np.asarray(wide(sae.W_dec))
    sizes = np.linalg.norm(rows, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (rows @ rows[unit]) / (sizes * sizes[unit])


def _edges(
    verb: str, sae: AbstractDictionary, site: Site, unit: int, edges: Sequence[Any], most: int
) -> "pd.DataFrame":
    import pandas as pd

    known, rows = None, []
    for each in edges:
        check_kind(f"{verb}: edges", each, MeanEdges, "what jc.features.mean_edges gives")
        known = known or fingerprint(anonymous(sae))
        ends = (("from", each.target, each.source), ("to", each.source, each.target))
        sides = [
            (side, other)
            for (side, own, other), of in zip(ends, each.dictionaries[::-1], strict=True)
            if own == site and of == known
        ]
        if not sides:
            raise ValueError(f"{verb}: {each!r} is of other dictionaries than this one at `{site}`.")
        for side, other in sides:
            numbers, values = _along(each, unit, side)
            order = np.argsort(-np.abs(values), kind="stable")[:most]
            rows += [(side, str(other), int(numbers[i]), float(values[i])) for i in order if values[i] != 0]
    return pd.DataFrame(rows, columns=["side", "site", "unit", "value"])


def _along(edges: MeanEdges, unit: int, side: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the latents at the other end of edges, and what the edges are."""
    if side == "from":
        there = unit in edges.targets
        values = edges.rows([unit])[0] if there else np.zeros(len(edges.W_dec))
        return np.arange(len(values)), values
    if edges.pairs is not None:
        return edges.targets, edges.pairs[:, [unit]].toarray()[:, 0]
    assert edges.readings is not None
    return edges.targets, edges.readings @ edges.W_dec[unit]


def _texts(tokenizer: Any, found: Firing, decoded: Decoded | None, most: int) -> dict[int, str]:
    ids = {int(token) for example in found.examples for token in example.tokens}
    if decoded is not None:
        k = min(most, decoded.logits.shape[-1] // 2)
        ids |= {int(token) for part in (decoded.top(k), decoded.bottom(k)) for token in np.asarray(part[0])}
    return {each: token_text(tokenizer, each) for each in sorted(ids)}
