"""The devices of a process: how many copies of model and dictionaries there are, and how a copy is laid over its devices.

The mesh has two axes, `data` and `width`. Along `data` lie copies; a copy lies on the devices along `width`: one, or where that is too
small for the dictionaries, several. `PLACES` is the one table that says which logical axis goes along which axis of the mesh.

Along `width` it is JAX's SPMD: dictionaries are put with a `NamedSharding`, and the compiler lays the programs of the verbs over the
devices of the copy. Along `data` it is not. A verb lists the latents that are on, on the host, in the midst of its work; with a batch that
lies over all devices they all wait for that, several times a batch, and for the slowest of them. So each copy has a thread that takes whole
batches to it, and nothing is sent between copies. With eight CPU devices on two cores node effects of the shipped model took a sixth of the
time that way. And the numbers are those of one device to the last bit, as the programs are the same; laid over eight they differ by
rounding. Programs are traced once, and compiled once for each copy.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._checks import check_count
from .._target import memory_limit
from ..models import Transformer
from ..saes import AbstractDictionary
from ._verbs import Saes


# Logical axis -> axis of the mesh. What is not named here is whole on every device of a copy.
PLACES = {"batch": "data", "d_sae": "width"}
ROOM = 0.5  # of a device's memory, which a copy of model and dictionaries may take; the rest is for what is computed


def make_mesh(copies: int, each: int) -> Mesh:
    """The mesh of this process: `copies` of model and dictionaries, on `each` devices."""
    devices = np.array(jax.local_devices()[: copies * each]).reshape(copies, each)
    return Mesh(devices, (PLACES["batch"], PLACES["d_sae"]))


def mesh_for(model: Transformer, saes: Saes, each: int | None) -> Mesh:
    """A mesh of all local devices, with copies on `each` devices, or on as many as a copy needs.

    **Raises:** `ValueError` if there are not as many.
    """
    there_are = jax.local_device_count()
    if each is None:
        each = _needed(_bytes((model, saes)), there_are)
    check_count("attribute: devices_per_copy", "devices have one copy of the dictionaries", each)
    if each > there_are:
        raise ValueError(
            f"attribute: devices_per_copy={each}, and this process has {there_are} devices. Ask for fewer."
        )
    return make_mesh(there_are // each, each)


@dataclasses.dataclass(frozen=True)
class Copy:
    """Model and dictionaries, where a batch is computed with them."""

    model: Transformer
    saes: Saes


def copies(mesh: Mesh, model: Transformer, saes: Saes) -> list[Copy]:
    """A copy for each place along `data`."""
    found = []
    for devices in mesh.devices:
        of_one = Mesh(devices, (PLACES["d_sae"],))
        whole = lambda tree, on=of_one: jax.device_put(tree, _sharding(on))
        placed = {site: _over_width(of_one, sae) for site, sae in saes.items()}
        found.append(Copy(whole(model), placed))
    return found


def _sharding(mesh: Mesh, *axes: str | None) -> Any:
    """Where an array with these logical axes lies; on one device without a word of meshes, which programs would else carry along."""
    if mesh.size == 1:
        return jax.sharding.SingleDeviceSharding(mesh.devices.item())
    return NamedSharding(mesh, PartitionSpec(*(PLACES.get(axis) if axis else None for axis in axes)))


def _over_width(mesh: Mesh, sae: AbstractDictionary) -> AbstractDictionary:
    """The dictionary with its latents divided among the devices, if they divide it."""
    if mesh.size == 1 or sae.d_sae % mesh.size:
        return jax.device_put(sae, _sharding(mesh))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, _sharding(mesh, *_axes(leaf, sae))), sae)


def _axes(leaf: Any, sae: AbstractDictionary) -> list[str | None]:
    """The logical axes of an array of a dictionary, told by their lengths: `W_enc` has latents last, `W_dec` first."""
    shape = np.shape(leaf)
    if sae.d_sae not in shape:
        return [None] * len(shape)
    square = len(shape) == 2 and shape[0] == shape[1]
    last = square and leaf is sae.W_enc
    at = len(shape) - 1 if last else shape.index(sae.d_sae)
    return ["d_sae" if axis == at else None for axis in range(len(shape))]


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _needed(size: int, most: int) -> int:
    """On how many devices a copy of so many bytes fits; one where devices do not say what they hold."""
    limit = memory_limit(jax.local_devices()[0])
    each = 1
    while limit and size > ROOM * limit * each and 2 * each <= most:
        each *= 2
    return each
