"""Many runs of one prompt, in each of which one latent is moved, in one program."""

import functools as ft
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._sites import Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ..runs import in_loop
from ._changes import Change, Moves, moves_of
from ._latent_sites import LatentSites
from ._replaced_run import Clean, Rows, run_moved, State


class Watched(NamedTuple):
    """What is measured of a run: by site the pre-activations of `unit` at `pos`, `[n]`; and along directions what the unembedding reads at
    `last`.
    """

    pos: dict[Site, Int[np.ndarray | Array, " _"]]
    unit: dict[Site, Int[np.ndarray | Array, " _"]]
    last: Int[np.ndarray | Array, ""]
    directions: Float[Array, "output d_model"]

    def of(self, state: State) -> tuple[dict[Site, Float[Array, " _"]], Float[Array, " output"]]:
        # [output d_model] · [d_model] -> [output]
        return {site: state.pre[site][self.pos[site], self.unit[site]] for site in self.pos}, (
            self.directions @ state.final[self.last]
        )


def stacked(
    latents: LatentSites, changes: Sequence[Change], seq: int, padded: int, dtype: jnp.dtype
) -> tuple[dict[Site, Moves], dict[tuple[Site, Site], Float[np.ndarray, "run _ _"]]]:
    """One run for each change, as moves with a leading axis: at every site one latent, which is moved in the runs that change one there.

    **Returns:** the moves, and what the moved latents write.
    """
    sites = sorted({change.site for change in changes})
    moves, rows = {}, {}
    for site in sites:
        # Elsewhere another latent of the site stands in, and stays.
        stand_in = next(change for change in changes if change.site == site)
        mine = [moves_of([change if change.site == site else stand_in], seq, padded, dtype)[site] for change in changes]
        moves[site] = jax.tree.map(lambda *x: np.stack(x), *jax.tree.map(np.asarray, mine))
        here = np.array([change.site == site for change in changes])
        moves[site] = eqx.tree_at(lambda m: m.at, moves[site], moves[site].at & here[:, None, None])
        for target in latents.targets(site):
            units, which = np.unique(moves[site].unit, return_inverse=True)
            rows[site, target] = np.asarray(latents.rows(site, target, jnp.asarray(units)))[which.reshape(-1, 1)]
    return moves, rows


@ft.partial(jax.jit, static_argnames=("live", "record", "together"))
def run_each(
    model: Transformer,
    latents: LatentSites,
    tokens: Tokens,
    mask: Keys,
    clean: Clean,
    moves: dict[Site, Moves],
    rows: Rows,
    watched: Watched,
    *,
    live: frozenset[Site],
    record: frozenset[Site],
    together: int,
) -> tuple[dict[Site, Float[Array, "run _"]], Float[Array, "run output"]]:
    """Runs the prompt once for each of the moves, `together` of them at a time, and measures."""
    one = lambda each: watched.of(run_moved(model, latents, tokens, mask, clean, *each, live=live, record=record))
    return in_loop(one, (moves, rows), together)
