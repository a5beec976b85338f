"""What the methods know of a pair of prompts: the clean run at every node, and how the corrupt run differs there."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._run import run
from .._sites import Kind, Site
from .._tap import site_read
from ..models import Transformer
from ..saes import AbstractDictionary, anonymous
from ._wiring import entry


class States(eqx.Module):
    """A batch of prompt pairs, run. Values are of the clean run and flat, `[batch seq width]`.

    **Attributes:**

    - `values`: at every node's site, and where its dictionary reads.
    - `others`: the corrupt run where the dictionaries read; `None` for the zero baseline.
    - `differences`: corrupt less clean at every node's site, 0 at padding.
    - `resid`: at the residual cuts, every block's `resid_pre`, the last `resid_post` (as `resid_pre` of the block after) and the
      `resid_mid`s at which a node enters.
    - `clean`, `corrupt`: the logits `[batch seq d_vocab]`; `corrupt` is `None` for the zero baseline.
    - `mask` `[batch seq]`: False for padding.
    """

    values: dict[Site, Float[Array, "batch seq _"]]
    others: dict[Site, Float[Array, "batch seq _"]] | None
    differences: dict[Site, Float[Array, "batch seq _"]]
    resid: dict[Site, Float[Array, "batch seq d_model"]]
    clean: Float[Array, "batch seq d_vocab"]
    corrupt: Float[Array, "batch seq d_vocab"] | None
    mask: Bool[Array, "batch seq"]


@jax.jit
def states(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    clean: Int[Array, "batch seq"],
    corrupt: Int[Array, "batch seq"] | None,
    mask: Bool[Array, "batch seq"],
) -> States:
    """Runs both sides. Without `corrupt`, every latent and every error goes to zero: the difference is `decode(0) - x`."""
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(model.n_layers)]
    cuts += sorted({entry(model, site) for site in saes} - {*cuts, Site(model.n_layers, Kind.RESID_PRE)})
    last = Site(model.n_layers - 1, Kind.RESID_POST)
    reads = {site_read(site, sae) for site, sae in saes.items()}

    def one(tokens, keys):
        logits, cache = run(model, tokens, record={last, *cuts, *saes, *reads}, mask=keys)
        return logits, {site: value.reshape(value.shape[0], -1) for site, value in cache.items()}

    if corrupt is None:
        (logits, cache), other, others = jax.vmap(one)(clean, mask), None, None
        zero = {site: jnp.zeros(sae.d_sae, logits.dtype) for site, sae in saes.items()}
        after = {site: sae.decode(zero[site], cache[site_read(site, sae)]) for site, sae in saes.items()}
    else:  # both sides as one batch, so that the model is compiled once
        both = jax.vmap(one)(jnp.concatenate([clean, corrupt]), jnp.concatenate([mask, mask]))
        (logits, cache), (other, after) = (jax.tree.map(lambda x, i=i: jnp.split(x, 2)[i], both) for i in range(2))
        others = {site: after[site] for site in reads}
    return States(
        values={site: cache[site] for site in {*saes, *reads}},
        others=others,
        differences={site: jnp.where(mask[..., None], after[site] - cache[site], 0) for site in saes},
        resid={**{cut: cache[cut] for cut in cuts}, Site(model.n_layers, Kind.RESID_PRE): cache[last]},
        clean=logits,
        corrupt=other,
        mask=mask,
    )


def node_differences(
    sae: AbstractDictionary, site: Site, at: States
) -> tuple[Float[Array, "batch seq d_sae"], Float[Array, "batch seq width"]]:
    """How the latents and the error of the dictionary at `site` differ, corrupt less clean.

    The error takes what the latents leave: the two differences, decoded at the clean input, make up the difference of the value
    exactly. For a dictionary that does not normalise its input that is the difference of the reconstruction errors.
    """
    reads = site_read(site, sae)
    other = None if at.others is None else at.others[reads]
    return _node_differences(anonymous(sae), at.values[reads], other, at.differences[site], at.mask)


@jax.jit
def _node_differences(sae, clean, other, difference, mask):
    before = sae.encode(clean)
    after = jnp.zeros_like(before) if other is None else sae.encode(other)
    acts = jnp.where(mask[..., None], after - before, 0)
    return acts, difference - sae.decoder_scale(clean)[..., None] * (acts @ sae.W_dec)
