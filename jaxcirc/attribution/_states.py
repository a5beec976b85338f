"""What the methods know of a pair of prompts: the clean run at every node, and how the corrupt run differs there."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._sites import Kind, Site
from .._tap import site_read
from ..graph import entry
from ..models import Transformer
from ..runs import Problem, record_sides
from ..saes import AbstractDictionary, anonymous
from ..units import Latents, listed, of_one_size, write


class States(eqx.Module):
    """A batch of prompt pairs, run with padding behind them to a length that others share. Values are of the clean run and flat,
    `[batch seq width]`.

    **Attributes:**

    - `values`: at every node's site, and where its dictionary reads.
    - `differences`: corrupt − clean at every node's site, 0 at padding.
    - `changes`: of the latents of every site, corrupt − clean; `slopes`: their derivatives with respect to their pre-activations, in
      the clean run.
    - `resid`: at the residual cuts, every block's `resid_pre`, the last `resid_post` (as `resid_pre` of the block after) and the
      `resid_mid`s at which a node enters.
    - `clean`, `corrupt` `[batch]`: the metric; `corrupt` is `None` for the zero baseline.
    - `prompts` `[2 batch seq]`, or `[1 batch seq]` for the zero baseline; `mask` `[batch seq]`: False for padding.
    """

    values: dict[Site, Float[Array, "batch seq _"]]
    differences: dict[Site, Float[Array, "batch seq _"]]
    changes: dict[Site, Latents]
    slopes: dict[Site, Latents]
    resid: dict[Site, Float[Array, "batch seq d_model"]]
    clean: Float[Array, " batch"]
    corrupt: Float[Array, " batch"] | None
    prompts: Int[Array, "side batch seq"]
    mask: Bool[Array, "batch seq"]

    @property
    def total(self) -> Float[Array, " batch"]:
        """The change of the metric; with the zero baseline there is no corrupt run, and it is the clean metric's negative."""
        return -self.clean if self.corrupt is None else self.corrupt - self.clean


def states(model: Transformer, problem: Problem) -> States:
    """Runs both sides. Without corrupt prompts, every latent and every error goes to zero: the difference is `decode(0) - x`."""
    saes, mask, cuts = problem.saes, problem.mask, residual_cuts(model, problem.saes)
    reads = {site: site_read(site, sae) for site, sae in saes.items()}
    clean, corrupt = record_sides(model, problem, {*cuts.values(), *saes, *reads.values()})
    differences, changes, slopes = {}, {}, {}
    for site, sae in saes.items():
        read, bare = clean.flat(reads[site]), anonymous(sae)
        after = _without_latents(bare, read) if corrupt is None else corrupt.flat(site)
        differences[site] = _difference(after, clean.flat(site), mask)
        found = _encoded(bare, read, None if corrupt is None else corrupt.flat(reads[site]), mask)
        changes[site], slopes[site] = (listed(np.asarray(dense)) for dense in found)
    return States(
        values={site: clean.flat(site) for site in {*saes, *reads.values()}},
        differences=differences,
        changes=_alike("changes", saes, changes, mask),
        slopes=_alike("slopes", saes, slopes, mask),
        resid={cut: clean.values[name] for cut, name in cuts.items()},
        clean=clean.metric,
        corrupt=None if corrupt is None else corrupt.metric,
        prompts=problem.prompts(),
        mask=mask,
    )


@jax.jit
def _without_latents(sae, x: Float[Array, "batch seq d_in"]) -> Float[Array, "... width"]:
    """Decodes no latents: to one vector for all positions, unless the decoder reads `x`."""
    return sae.decode(jnp.zeros(sae.d_sae, x.dtype), x)


def residual_cuts(model: Transformer, nodes) -> dict[Site, Site]:
    """The cuts of `States.resid`, and the site that holds the value of each."""
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers + 1)]
    cuts += sorted({entry(model, site) for site in nodes} - {*cuts})
    end = Site(model.n_layers, Kind.RESID_PRE)
    return {cut: Site(model.n_layers - 1, Kind.RESID_POST) if cut == end else cut for cut in cuts}


@jax.jit
def _difference(after, before, mask) -> Float[Array, "batch seq width"]:
    """What differs, and 0 at padding."""
    return jnp.where(mask[..., None], after - before, 0)


@jax.jit
def _encoded(sae, clean, other, mask) -> tuple[Float[Array, "batch seq d_sae"], Float[Array, "batch seq d_sae"]]:
    """How latents differ, and the slopes of the clean ones."""
    before = sae.encode(clean)
    after = jnp.zeros_like(before) if other is None else sae.encode(other)
    return jnp.where(mask[..., None], after - before, 0), sae.slopes(clean)


def with_values(
    saes: dict[Site, AbstractDictionary],
    at: States,
    values: dict[Site, Float[Array, "batch seq _"]],
    resid: dict[Site, Float[Array, "batch seq d_model"]],
) -> States:
    """Another run of the same prompts; what differs between their sides stays."""
    encode = lambda site, sae: _encoded(anonymous(sae), values[site_read(site, sae)], None, at.mask)[1]
    slopes = {site: listed(np.asarray(encode(site, sae))) for site, sae in saes.items()}
    return dataclasses.replace(at, values=values, resid=resid, slopes=_alike("slopes", saes, slopes, at.mask))


def _alike(what: str, saes: dict[Site, AbstractDictionary], lists: dict[Site, Latents], mask) -> dict[Site, Latents]:
    """Lists of one size at all sites, which prompts of this length and dictionaries as wide share."""
    return of_one_size(lists, what, mask.shape[1], *sorted({sae.d_sae for sae in saes.values()}))


@jax.jit
def error_differences(
    sae: AbstractDictionary,
    x: Float[Array, "batch seq d_in"],
    difference: Float[Array, "batch seq width"],
    changes: Latents,
) -> Float[Array, "batch seq width"]:
    """How the error of a dictionary differs, corrupt − clean, where its input is `x`, the value differs by `difference`, and latents
    by `changes`.

    The error takes what the latents leave: the two differences, decoded at the clean input, make up the difference of the value
    exactly. For a dictionary that does not normalise its input that is the difference of the reconstruction errors.
    """
    written = jax.vmap(lambda changes: write(changes, sae.W_dec, x.shape[1]))(changes)
    return difference - sae.decoder_scale(x)[..., None] * written
