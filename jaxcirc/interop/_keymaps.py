"""How the key tables are written, by which every reader and writer goes from a file's names and layouts to ours and back."""

import dataclasses
import re
from collections.abc import Mapping

from ._spec import Spec


@dataclasses.dataclass(frozen=True)
class Key:
    """One stored tensor: the arrays that it holds (stacked on a leading axis `part` if more than one), their layout, and its name and
    layout in each kind of file. `optional`: a file may lack it, and then it is zero.
    """

    ours: tuple[str, ...]
    axes: str
    torch: str
    torch_axes: str
    flax: str = ""
    flax_axes: str = ""
    optional: bool = False

    def name(self, kind: str) -> str:
        return self.flax if kind == "flax" else self.torch

    def layout(self, kind: str) -> str:
        return self.flax_axes if kind == "flax" else self.torch_axes

    def in_block(self, layer: int) -> "Key":
        """Makes the row for block `layer`."""
        replace = lambda name: name.replace("{layer}", str(layer))
        ours = tuple(f"blocks.{layer}.{name}" for name in self.ours)
        return dataclasses.replace(self, ours=ours, torch=replace(self.torch), flax=replace(self.flax))


def vector(ours: str, torch: str, flax: str = "", axes: str = "d_model") -> Key:
    """A row of a tensor that is stored as it is."""
    return Key((ours,), axes, torch, axes, flax, axes)


def linear(ours: str, axes: str, torch: str, stored: str) -> Key:
    """A row of one array, as PyTorch alone stores it."""
    return Key((ours,), axes, torch, stored)


@dataclasses.dataclass(frozen=True)
class Table:
    """The tensors of one architecture, every one that some model of it has.

    **Attributes:**

    - `embedding`, `head`: the two that may be tied. `outside`, `block`: the others, outside the blocks and in one.
    - `prefixes`: what the classes with a head put in front of every name but the head's; the first is written.
    - `aliases`: other names of the same tensors, `{other: name}`.
    - `ignored`: names of what is kept beside the weights, such as masks, or belongs to another part of a larger model.
    - `flax`: whether there are names in Flax files.
    """

    embedding: Key
    head: Key
    outside: tuple[Key, ...]
    block: tuple[Key, ...]
    prefixes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    ignored: re.Pattern[str] = re.compile(r"(?!)")
    flax: bool = False

    def keys(self, spec: Spec) -> tuple[Key, ...]:
        """Lists every tensor that a checkpoint of this model holds, in order."""
        inside = (key.in_block(layer) for layer in range(spec.n_layers) for key in self.block)
        rows = (self.embedding, *self.outside, *inside, *(() if spec.tied else (self.head,)))
        return tuple(row for row in rows if spec.stored.issuperset(row.ours))

    def bare(self, name: str) -> str | None:
        """Finds a stored tensor's name in this table's words; `None` for what is ignored."""
        longest = max((prefix for prefix in self.prefixes if name.startswith(prefix)), key=len, default="")
        name = name.removeprefix(longest)
        return None if self.ignored.fullmatch(name) else self.aliases.get(name, name)
