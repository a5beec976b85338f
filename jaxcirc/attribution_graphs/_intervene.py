"""Interventions: latents of a replacement model are moved, and everything else is held or follows."""

from collections.abc import Iterable, Sequence

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Int

from .._checks import check_list
from .._edits import Scale
from .._run import check_tokens, sites
from .._shown import Shown
from .._sites import did_you_mean, Kind, layer_of, Site
from .._traced import check_untraced
from .._typing import Keys, Tokens
from ..jacobian import frozen as holding
from ..models import Transformer
from ..runs import filled, shortened
from ..saes import Decoder
from ._changes import Change, check_changes, Moves, moves_of
from ._given import Transcoders
from ._latent_sites import find_latents, LatentSites
from ._padding import real_part
from ._replaced_run import Clean, run_clean, run_moved, State


class Intervention(Shown, eqx.Module):
    """A prompt with latents moved: the `clean` run, and the `changed` one."""

    clean: State
    changed: State


def intervene(
    model: Transformer,
    transcoders: Transcoders,
    tokens: Tokens,
    changes: Sequence[Change],
    *,
    frozen: Iterable[Site | str] | None = None,
    live_from: int | None = None,
    record: Iterable[Site | str] | None = None,
    mask: Keys | None = None,
) -> Intervention:
    r"""Runs a prompt with single latents scaled, moved or set, and tells what becomes of the logits and of all other latents.

    The model that runs is the local replacement model: what a sublayer writes is what its latents $a$ and their decoders make, plus what
    these did not reconstruct in the clean run, which stays,

    $$y_l = y_l^{clean} + \sum_{i \le l} (a_i - a_i^{clean}) W_{dec}^{i \to l} + (x_l - x_l^{clean}) W_{skip}^l,$$

    the sum over $i < l$ for cross-layer transcoders alone. MLPs without a dictionary have their neurons as latents. By default everything
    else is held that makes the model nonlinear: latents have their clean values but for the change, attention patterns and the scales of
    norms are those of the clean run. What a pre-activation or an uncapped logit then moves by is the *direct* effect, and exactly that edge
    of an attribution graph times the relative change of the latent.

    **Arguments:**

    - `transcoders`: dictionaries by site (`jc.load_saes`), or a cross-layer transcoder; `{}` for neurons alone.
    - `tokens` `[seq]`: one prompt.
    - `changes`: such as `Change(site, pos, unit, jc.Scale(2.0))`.
    - `frozen`: sites that keep their clean values, by default all patterns and scales of norms,
      `jc.frozen.patterns(model) | jc.frozen.layer_norms(model)`; `()` for none.
    - `live_from`: latents of this layer and of later ones are encoded anew; a change then acts on what they are in the changed run.
      `None`: no latents are.
    - `record`: the sites whose latents are wanted; by default all.
    - `mask` `[seq]`: False for padding before or behind the prompt; positions count from the first token, padding or not.

    **Returns:** `clean` and `changed`, each with `logits` `[seq d_vocab]`, `final` `[seq d_model]`, and by site `acts` and `pre`
    `[seq d_sae]`.

    **Raises:** `ValueError` for latents, positions or sites that are not there, dictionaries of another model or site, a latent to scale
    that is off, and for decoders in their file with live latents; `TypeError` for arguments of another kind.

    >>> changes = [jc.attribution_graphs.Change("blocks.0.mlp.hook_post", 3, 17, jc.Scale(2.0))]
    >>> run = jc.intervene(model, {}, tokens, changes, live_from=1)
    >>> run.changed.logits.shape == run.clean.logits.shape
    True

    **Reference:** Ameisen et al. 2025, "Circuit Tracing: Revealing Computational Graphs in Language Models", Transformer Circuits, on local
    replacement models and validation by perturbation. circuit-tracer's `feature_intervention` sets values alone and holds either everything
    or the MLPs of a range of layers; here every site can be held or live.
    """
    check_untraced("intervene", model)
    check_tokens(model, tokens)
    real = real_part("intervene", tokens, mask)
    latents = find_latents("intervene", model, transcoders)
    found = check_changes("intervene", latents, changes, len(tokens))
    there = np.zeros(len(tokens), bool)
    there[real.slice] = True
    for change in found:
        if not change.positions(len(tokens))[there].any():
            raise ValueError(
                f"intervene: {change}: that is padding; real tokens are at {real.first} to {real.end - 1}."
            )
    held = held_sites("intervene", model, frozen)
    live = live_sites("intervene", model, latents, live_from)
    wanted = recorded_sites("intervene", latents, record)
    seq, prompt = len(tokens), filled_prompt(model, tokens, there)
    given = model, latents, *prompt
    before, clean = run_clean(*given, frozen=held, record=wanted)
    check_on("intervene", found, clean, live, seq)
    moves = moves_of(found, seq, len(prompt[0]), model.activation_dtype)
    rows = rows_of_moves(latents, moves)
    after = run_moved(*given, clean, moves, rows, live=live, record=wanted)
    return Intervention(*jax.tree.map(lambda x: shortened(x, seq, axis=0), (before, after)))


def filled_prompt(
    model: Transformer, tokens: Tokens | Int[np.ndarray, " seq"], real: Bool[np.ndarray, " seq"]
) -> tuple[Int[np.ndarray, " seq_run"], Bool[np.ndarray, " seq_run"]]:
    """Fills a prompt and its mask up to the length at which it is run: within the context that the model was trained on, if it is."""
    prompts, masks = filled(np.asarray(tokens)[None], real[None], max(len(tokens), model.n_ctx))
    return prompts[0], masks[0]


def held_sites(verb: str, model: Transformer, frozen: Iterable[Site | str] | None) -> frozenset[Site]:
    """The sites to hold. **Raises:** `ValueError` for one that the model does not have."""
    if frozen is None:
        return holding.patterns(model) | holding.layer_norms(model)
    held = frozenset(map(Site.parse, check_list(f"{verb}: frozen", "sites", frozen)))
    known = sites(model)
    for site in sorted(held - {*known}):
        raise ValueError(
            f"{verb}(frozen=…): no site `{site}` in {model.name} with {model.n_layers} layers. {did_you_mean(str(site), map(str, known))}"
        )
    if Site(None, Kind.LOGITS) in held:
        raise ValueError(f"{verb}(frozen=…): with the logits held nothing can move them. Leave `logits` out.")
    return held


def live_sites(verb: str, model: Transformer, latents: LatentSites, live_from: int | None) -> frozenset[Site]:
    """The sites whose latents are encoded anew. **Raises:** `ValueError` for a layer that is not there, and for decoders in a file."""
    if live_from is None:
        return frozenset()
    if isinstance(live_from, bool) or not isinstance(live_from, int) or not 0 <= live_from < model.n_layers:
        raise ValueError(
            f"{verb}: live_from is a layer, 0 to {model.n_layers - 1}, or None for no live latents; got {live_from!r}."
        )
    across = latents.across
    if across is not None and not all(isinstance(each, Decoder) for each in across.decoders):
        raise ValueError(
            f"{verb}: live latents write all that they are, and these decoders are in their file. Load them with decoders='in memory', or "
            "leave latents at their clean values with live_from=None."
        )
    return frozenset(site for site in latents.sites if layer_of(site) >= live_from)


def recorded_sites(verb: str, latents: LatentSites, record: Iterable[Site | str] | None) -> frozenset[Site]:
    """The sites whose latents are wanted. **Raises:** `ValueError` for one without."""
    if record is None:
        return frozenset(latents.sites)
    wanted = frozenset(map(Site.parse, check_list(f"{verb}: record", "sites", record)))
    for site in sorted(wanted - {*latents.sites}):
        there = ", ".join(f"`{each}`" for each in latents.sites) or "none"
        raise ValueError(f"{verb}(record=…): there are no latents at `{site}`. There are at: {there}.")
    return wanted


def check_on(verb: str, changes: Sequence[Change], clean: Clean, live: frozenset[Site], seq: int) -> None:
    """ValueError for a latent that is to be scaled and is off wherever it is."""
    for change in changes:
        if change.site in live or not isinstance(change.edit, Scale):
            continue
        if not np.asarray(clean.acts[change.site][:seq, change.unit])[change.positions(seq)].any():
            raise ValueError(
                f"{verb}: {change}: the latent is off there in the clean run, and 0 times anything is 0. To turn it on use jc.Add or "
                "jc.Replace."
            )


def rows_of_moves(latents: LatentSites, moves: dict[Site, Moves]) -> dict[tuple[Site, Site], jax.Array]:
    """What the moved latents write, at each site that they write to."""
    return {
        (site, target): latents.rows(site, target, moves[site].unit)
        for site in moves
        for target in latents.targets(site)
    }
