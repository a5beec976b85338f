"""Numbers of nodes: of latents those that are not zero, listed, and an array of all of them only as long as somebody looks at it.

Of tens of thousands of latents a few are on or moved at each position; at all sites and positions at once the zeros would be most of what
there is in memory.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._sites import BySite, Site
from ..runs import shortened
from ..units import from_instances, Latents


class NodeValues(eqx.Module):
    """A number for each node at a site.

    **Attributes:** - `latents`: those of latents; the ones that are not listed are 0. - `error` `[batch seq]`: that of the error. -
    `d_sae`: how many latents there are.
    """

    latents: Latents
    error: Float[Array, "batch seq"]
    d_sae: int = eqx.field(static=True)

    def acts(self) -> Float[Array, "batch seq d_sae"]:
        """Those of all latents in one array."""
        return jnp.asarray(self._dense(self.d_sae))

    def nodes(self) -> Float[Array, "batch seq node"]:
        """Those of all latents, and behind them that of the error, in one array."""
        dense = self._dense(self.d_sae + 1)
        dense[..., -1] = self.error
        return jnp.asarray(dense)

    def instances(self) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
        """Those of all listed latents and of all errors, as (example, position, node), and their values."""
        error = np.asarray(self.error)
        index, values = self.latents.instances()
        place = np.indices(error.shape).reshape(2, -1)
        errors = np.stack([*place, np.full(error.size, self.d_sae)], axis=-1)
        return np.concatenate([index, errors]), np.concatenate([values, error.reshape(-1)])

    def above(self, threshold: float) -> Int[np.ndarray, "n 3"]:
        """The nodes whose number is larger than the threshold, in size, as (example, position, node)."""
        index, values = self.instances()
        return index[np.abs(values) > threshold].astype(np.int32)

    def shortened(self, length: int) -> "NodeValues":
        """Those of the first positions, where the others hold padding: no latent is listed there."""
        return NodeValues(self.latents, shortened(self.error, length), self.d_sae)

    def _dense(self, count: int) -> Float[np.ndarray, "batch seq {count}"]:
        index, values = self.latents.instances()
        dense = np.zeros((*self.error.shape, count), values.dtype)
        dense[tuple(index.T)] = values
        return dense


def node_values(
    index: Int[np.ndarray, "n 3"], values: Float[np.ndarray, " n"], shape: tuple[int, ...], d_sae: int
) -> NodeValues:
    """Numbers of nodes that are listed in order as (example, position, node), of prompts of `shape` `[batch seq]`; of others 0."""
    is_error = index[:, 2] == d_sae
    error = np.zeros(shape, values.dtype)
    error[*index[is_error, :2].T] = values[is_error]
    return NodeValues(from_instances(index[~is_error], values[~is_error], shape[0]), jax.device_put(error), d_sae)


@jax.tree_util.register_pytree_with_keys_class
class ArraysBySite(Mapping[Site, Array]):
    """Arrays by site, or its name, each made when it is asked for and held as long as somebody holds it. A pytree of them all."""

    def __init__(self, makers: Iterable[tuple[Site, Callable[[], Array]]]):
        self._makers = BySite(makers)
        self._alive: weakref.WeakValueDictionary[Site, Array] = weakref.WeakValueDictionary()

    def __getitem__(self, key: Site | str) -> Array:
        make, site = self._makers[key], Site.parse(key)
        found = self._alive.get(site)
        if found is None:
            found = self._alive[site] = make()
        return found

    def __contains__(self, key: object) -> bool:
        return key in self._makers

    def __iter__(self) -> Iterator[Site]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)

    def __repr__(self) -> str:
        return f"<arrays at {', '.join(f'`{site}`' for site in self)}>"

    def tree_flatten_with_keys(self):
        return BySite(self.items()).tree_flatten_with_keys()

    @classmethod
    def tree_unflatten(cls, sites: tuple[Site, ...], values: Iterable[Array]) -> BySite[Array]:
        return BySite.tree_unflatten(sites, values)
