"""Changes of single latents: which, at which positions, and how."""

import numbers
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_kind, check_list
from .._edits import AbstractEdit, Add, Replace, Scale
from .._indexing import take
from .._sites import Site
from ._latent_sites import LatentSites


EDITS = (Scale, Add, Replace)


class Change(eqx.Module):
    """One latent, or neuron, and what happens to it.

    **Arguments:**

    - `site`: of its dictionary, or of the neurons, `blocks.3.mlp.hook_post`; a site or its name.
    - `pos`: a position, or a slice of positions: `slice(5, None)` is 5 and all later ones, also those that are still to be generated.
    - `unit`: its number.
    - `edit`: `jc.Scale(2.0)` doubles it, `jc.Add(1.5)` adds, `jc.Replace(0.0)` sets it. One number for all its positions.

    >>> jc.attribution_graphs.Change("blocks.1.hook_mlp_out", slice(5, None), 17, jc.Scale(2.0)).unit
    17
    """

    site: Site = eqx.field(static=True, converter=Site.parse)
    pos: int | slice = eqx.field(static=True)
    unit: int = eqx.field(static=True)
    edit: AbstractEdit

    def __check_init__(self):
        if isinstance(self.pos, slice):
            ends = (self.pos.start, self.pos.stop, self.pos.step)
            whole = all(end is None or isinstance(end, numbers.Integral) for end in ends)
        else:
            whole = isinstance(self.pos, numbers.Integral)
        if not whole or not isinstance(self.unit, numbers.Integral) or isinstance(self.unit, bool):
            raise TypeError(
                f"Change(site, pos, unit, edit): expected whole numbers, or a slice of positions; got pos={self.pos!r}, unit={self.unit!r}."
            )
        check_kind("Change: edit", self.edit, EDITS, "jc.Scale(factor), jc.Add(value) or jc.Replace(value)")
        (number,) = jax.tree.leaves(self.edit)
        if jnp.shape(number) != ():
            raise ValueError(
                f"Change: {type(self.edit).__name__} holds one number for the latent; got an array of shape {jnp.shape(number)}."
            )

    def positions(self, seq: int) -> Bool[np.ndarray, " seq"]:
        """Where it acts among `seq` positions."""
        there = np.zeros(seq, bool)
        there[self.pos] = True
        return there

    def __str__(self) -> str:
        at = self.pos
        if isinstance(at, slice):
            at = ":".join("" if end is None else str(end) for end in (at.start, at.stop))
        return f"{self.site}/{self.unit} at {at}"


class Moves(eqx.Module):
    """What happens to some latents of one site: where `at`, `acts` become `acts * factor + offset`."""

    unit: Int[Array, " n"]
    at: Bool[Array, "n seq"]
    factor: Float[Array, " n"]
    offset: Float[Array, " n"]

    def steps(self, acts: Float[Array, "seq d_sae"]) -> Float[Array, "seq n"]:
        """By how much each moves at each position."""
        now = take(acts, self.unit, axis=1)
        return jnp.where(self.at.T, now * self.factor + self.offset - now, 0)

    def __call__(self, acts: Float[Array, "seq d_sae"]) -> Float[Array, "seq d_sae"]:
        """The latents, moved."""
        return acts.at[:, self.unit].add(self.steps(acts))


def check_changes(
    verb: str, latents: LatentSites, changes: Sequence[Change], seq: int, *, of: str = "the tokens of the prompt"
) -> list[Change]:
    """`changes` as a list. **Raises:** `TypeError`, `ValueError` for none at all, latents or positions that are not there, and two changes
    of one latent at one position.
    """
    found = check_list(f"{verb}: changes", "changes", changes)
    if not found:
        raise ValueError(f"{verb}: no latent is changed. Give changes such as Change(site, pos, unit, jc.Scale(2.0)).")
    taken: dict[tuple[Site, int], Bool[np.ndarray, " seq"]] = {}
    for change in found:
        check_kind(f"{verb}: changes", change, Change, "changes such as Change(site, pos, unit, jc.Scale(2.0))")
        if change.site not in latents.sites:
            there = ", ".join(f"`{site}`" for site in latents.sites) or "none"
            raise ValueError(f"{verb}: there are no latents at `{change.site}`. There are at: {there}.")
        size = latents.d_sae(change.site)
        if not 0 <= change.unit < size:
            raise ValueError(f"{verb}: {change}: the units at `{change.site}` are 0 to {size - 1}.")
        single = not isinstance(change.pos, slice)
        if (single and not -seq <= change.pos < seq) or not change.positions(seq).any():
            raise ValueError(f"{verb}: {change}: {of} have positions 0 to {seq - 1}.")
        before, here = taken.get((change.site, change.unit), np.zeros(seq, bool)), change.positions(seq)
        if (before & here).any():
            raise ValueError(f"{verb}: {change}: another change is of the same latent there. Make one of the two.")
        taken[change.site, change.unit] = before | here
    return found


def moves_of(changes: Sequence[Change], seq: int, padded: int, dtype: jnp.dtype) -> dict[Site, Moves]:
    """Changes as arrays, by site, at `padded` positions of which the first `seq` are there."""
    found = {}
    for site in sorted({change.site for change in changes}):
        here = [change for change in changes if change.site == site]
        at = np.zeros((len(here), padded), bool)
        at[:, :seq] = [change.positions(seq) for change in here]
        affine = np.array([_affine(change.edit) for change in here])
        units = np.array([change.unit for change in here], np.int32)
        found[site] = Moves(*map(jnp.asarray, (units, at, affine[:, 0].astype(dtype), affine[:, 1].astype(dtype))))
    return found


def _affine(edit: AbstractEdit) -> tuple[float, float]:
    """By which factor an edit multiplies, and what it then adds."""
    (number,) = (float(leaf) for leaf in jax.tree.leaves(edit))
    return {Scale: (number, 0.0), Add: (1.0, number), Replace: (0.0, number)}[type(edit)]
