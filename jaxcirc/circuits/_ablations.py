"""The values of the nodes of a circuit, and what takes their place."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float

from .._sites import Site


class Nodes(NamedTuple):
    """The values of all nodes at a site, or what they are ablated to: latents and error, flat."""

    acts: Float[Array, "*batch seq d_sae"]
    error: Float[Array, "*batch seq width"]


Values = Mapping[Site, Nodes]  # with a leading axis over prompts
