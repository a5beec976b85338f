"""A batch run no further than what is asked for."""

from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._sites import Kind, layer_of, Site
from ..models import Transformer
from ._recorded import embed
from ._resume import attend, resume


def values_until(
    model: Transformer,
    tokens: Int[Array | np.ndarray, "batch seq"],
    mask: Bool[Array | np.ndarray, "batch seq"],
    sites: Iterable[Site],
) -> dict[Site, Float[Array, "batch seq ..."]]:
    """The values at sites of the embedding and the blocks, by a run that ends where the last of them is known: of the last block no more
    than its attention, or nothing, where no more is needed.
    """
    wanted = frozenset(sites)
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)
    outside = frozenset(site for site in wanted if site.layer is None)
    resid, found = embed(model.without_blocks, tokens, mask, {}, record=outside)
    inside = sorted(wanted - outside)
    if not inside:
        return found
    masks, rows, last = model.batch_masks(mask), np.arange(len(tokens)), layer_of(inside[-1])
    here = [site for site in inside if site.layer == last]
    if last:
        earlier = [site for site in inside if site.layer != last]
        start = Site(0, Kind.RESID_PRE)
        resid, values = resume(model, masks, start, rows, resid, record=earlier, until=last - 1)
        found = {**found, **values}
    entering, middle = Site(last, Kind.RESID_PRE), Site(last, Kind.RESID_MID)
    if not {*here} <= {entering, middle}:
        return {**found, **resume(model, masks, entering, rows, resid, record=here, until=last)[1]}
    if entering in here:
        found[entering] = resid
    if middle in here:
        found[middle] = attend(model, masks, last, rows, resid)
    return found
