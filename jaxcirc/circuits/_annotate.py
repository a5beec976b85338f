"""What a circuit's latents fire on and what they write, read off the prompts and the dictionaries."""

import functools as ft
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_count, check_kind, check_list
from .._indexing import rows_of
from .._run import check_mask, check_tokens
from .._sites import by_site, Site
from .._tokens import together, token_text, token_texts
from ..components import decode
from ..components._decode import STREAM
from ..features._unit_acts import filled_lists, unit_activations
from ..models import Transformer
from ..runs import lengthened
from ..saes import AbstractDictionary
from ._circuit import Circuit


class _Fired(NamedTuple):
    """What the circuit's latents do on prompts: the `units` of each site, their `acts`, the `tokens` and which are `real`."""

    units: dict[Site, list[int]]
    acts: dict[Site, Float[np.ndarray, "prompt seq unit"]]
    tokens: Int[np.ndarray, "prompt seq"]
    real: Bool[np.ndarray, "prompt seq"]


def annotate_latents(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    token_batches: Sequence[Int[Array, "_ _"]],  # each of a size of its own
    tokenizer: Any,
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    most: int = 3,
) -> dict[str, str]:
    """For each latent of the circuit, the tokens on which it is strongest on average, among these prompts: `{node: "on is, was"}`.

    **Arguments:** - `token_batches`: prompts, for example the clean and the corrupt ones; batches may differ in length. - `mask`: False for
    padding, of each batch alike. - `most`: how many tokens are listed.

    **Raises:** `ValueError` for a site without its dictionary, and for what `jc.run` cannot run.
    """
    check_count("annotate_latents: most", "tokens to list", most)
    return _notes(circuit, _fired("annotate_latents", circuit, model, saes, token_batches, mask), tokenizer, most)


def describe_latents(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    token_batches: Sequence[Int[Array, "_ _"]],  # each of a size of its own
    tokenizer: Any,
    *,
    mask: Bool[Array, "batch seq"] | None = None,
    examples: int = 3,
    outputs: int = 6,
) -> dict[str, dict[str, Any]]:
    """For each latent of the circuit, what the explorer's page shows of it: `circuit.annotate(latents=describe_latents(…)).to_html(path)`.

    **Arguments:** - `token_batches`: prompts, for example the clean and the corrupt ones; the first is the one whose tokens the page shows.
    Batches may differ in length. - `mask`: False for padding, of each batch alike. - `examples`, `outputs`: how many prompts and tokens are
    listed.

    **Returns:** plain JSON by the latent's name without a position, `"blocks.1.hook_mlp_out/3"`: `acts`, its activation on the first prompt
    token by token, if the circuit has positions; `examples`, the prompts on which it is strongest, `[{"tokens": […], "acts": […]}]`;
    `promotes` and `suppresses`, the output tokens whose logits its decoder's row raises and lowers most, `[[token, logit]]`, as
    `jc.decode` reads it, for sites in the residual stream.

    **Raises:** `ValueError` for numbers of examples or outputs below 1, for a site without its dictionary, and for what `jc.run` cannot
    run.
    """
    check_count("describe_latents: examples", "prompts to list", examples)
    check_count("describe_latents: outputs", "output tokens to list", outputs)
    fired = _fired("describe_latents", circuit, model, saes, token_batches, mask)
    return _descriptions(circuit, model, saes, fired, tokenizer, examples, outputs)


def annotated(
    circuit: Circuit,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    token_batches: Sequence[Int[Array, "_ _"]],  # each of a size of its own
    tokenizer: Any,
    mask: Bool[Array, "batch seq"] | None,
) -> Circuit:
    """The circuit with both, `annotations` and `latents`, from one run of the prompts."""
    fired = _fired("annotate_latents", circuit, model, saes, token_batches, mask)
    described = _descriptions(circuit, model, saes, fired, tokenizer, 3, 6)
    return circuit.annotate(annotations=_notes(circuit, fired, tokenizer, 3), latents=described)


def _fired(verb: str, circuit, model, saes, token_batches, mask) -> _Fired:
    check_kind(f"{verb}: circuit", circuit, Circuit, "a circuit, as jc.discover gives one")
    saes = by_site(saes)
    found: dict[Site, set[int]] = {}
    for node in circuit.node_rows():
        if node.kind == "latent":
            found.setdefault(Site.parse(node.site), set()).add(node.unit)
    units = {site: sorted(chosen) for site, chosen in found.items()}
    for site, chosen in units.items():
        if site not in saes or chosen[-1] >= saes[site].d_sae:
            raise ValueError(
                f"{verb}: the circuit has latents up to {chosen[-1]} at `{site}`, and no dictionary that was given has them. Give those "
                "that it was found with."
            )
    tokens, real = _joined(verb, model, token_batches, mask)
    acts = unit_activations(model, {site: saes[site] for site in units}, tokens, real, units)
    return _Fired(units, acts, tokens, real)


def _joined(verb: str, model, token_batches, mask) -> tuple[np.ndarray, np.ndarray]:
    """All prompts in one array, filled up on the right to the longest, and which of their tokens are real."""
    if isinstance(token_batches, jax.Array | np.ndarray):
        raise TypeError(f"{verb}: token_batches: expected a list of batches of token ids, got one. Write [tokens].")
    batches = check_list(f"{verb}: token_batches", "batches of token ids", token_batches)
    if not batches:
        raise ValueError(f"{verb}: token_batches: there is no prompt. Give at least one batch of token ids.")
    for batch in batches:
        check_tokens(model, batch, batched=True)
        check_mask(batch, mask)
    longest = max(batch.shape[1] for batch in batches)
    real = [np.ones(batch.shape, bool) if mask is None else mask for batch in batches]
    tokens, real = (np.concatenate([lengthened(x, longest, 0) for x in each]) for each in (batches, real))
    return tokens, real


def _notes(circuit: Circuit, fired: _Fired, tokenizer: Any, most: int) -> dict[str, str]:
    kinds = np.unique(fired.tokens[fired.real])
    words = [name.strip() for name in token_texts(tokenizer, kinds)]
    notes = {}
    for site, chosen in fired.units.items():
        means = [fired.acts[site][(fired.tokens == kind) & fired.real].mean(axis=0) for kind in kinds]  # [token unit]
        for unit, strength in zip(chosen, np.stack(means).T, strict=True):
            notes[site, unit] = [
                words[i] for i in np.argsort(-strength)[:most] if strength[i] > 0.1 * strength.max() > 0
            ]
    latents = [node for node in circuit.node_rows() if node.kind == "latent"]
    named = {node.node: notes[Site.parse(node.site), node.unit] for node in latents}
    return {name: "on " + ", ".join(words) for name, words in named.items() if words}


def _descriptions(circuit, model, saes, fired: _Fired, tokenizer, examples: int, outputs: int) -> dict[str, Any]:
    saes = by_site(saes)
    read = ft.cache(lambda row: together(tokenizer, fired.tokens[row][fired.real[row]]))
    with_positions = any(node.pos is not None for node in circuit.node_rows())
    found: dict[str, Any] = {}
    filled = filled_lists(fired.units)
    for site, units in fired.units.items():
        acts = np.where(fired.real[..., None], fired.acts[site], 0)
        written = _written(model, saes[site], site, filled[site], len(units), tokenizer, min(outputs, len(model.b_U)))
        for i, unit in enumerate(units):
            best = np.argsort(-acts[..., i].max(axis=1), kind="stable")[:examples]
            listed = [_example(fired, acts[..., i], row, read(int(row))) for row in best if acts[row, :, i].max() > 0]
            first = {"acts": _rounded(acts[0, :, i][fired.real[0]])} if with_positions else {}
            found[f"{site}/{unit}"] = {**first, "examples": listed, **(written[i] if written else {})}
    return found


def _example(
    fired: _Fired, acts: Float[np.ndarray, "prompt seq"], row: int | np.integer, pieces: Sequence[tuple[int, str]]
) -> dict:
    """A prompt as it reads, and how strong the unit is at each piece of it: where tokens share a letter, at the strongest of them."""
    ends = np.cumsum([count for count, _ in pieces])
    strongest = [max(part.tolist(), key=abs) for part in np.split(acts[row][fired.real[row]], ends[:-1])]
    return {"tokens": [text for _, text in pieces], "acts": _rounded(np.asarray(strongest))}


def _rounded(acts: Float[np.ndarray, " n"]) -> list[float]:
    return [float(f"{act:.4g}") for act in acts.tolist()]


def _written(
    model, sae: AbstractDictionary, site: Site, units: Int[np.ndarray, " size"], count: int, tokenizer, most: int
) -> list[dict]:
    """Reads the rows of the decoder of the first `count` units as output tokens; nothing where they do not write to the residual stream."""
    if site.kind not in STREAM:
        return []
    read = decode(model, rows_of(sae.W_dec, units), site)
    sides = {
        name: tuple(map(np.asarray, side))
        for name, side in {"promotes": read.top(most), "suppresses": read.bottom(most)}.items()
    }
    listed = lambda ids, by: [
        [token_text(tokenizer, token), float(f"{x:.4g}")] for token, x in zip(ids, by, strict=True)
    ]
    return [{name: listed(ids[i], by[i]) for name, (ids, by) in sides.items()} for i in range(count)]
