"""The tap: the one callable through which every named activation passes.

A model's forward pass reads `x = tap(Kind.ATTN_OUT, x)` wherever an activation has a name; so the model shows, top to bottom, where it
can be touched. A tap splices dictionaries in, applies edits, and records what downstream sees, in that order. It lives only while
`run` traces and never crosses a `jit` or `vmap`, so that `run` is a pure function.
"""

from collections.abc import Callable, Container, Iterator, Mapping
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._edits import AbstractEdit, At, EditShapeError
from ._precision import wide
from ._sites import did_you_mean, Kind, Site
from .saes import AbstractDictionary


class Everything:
    """The set of all sites, for `record`."""

    def __contains__(self, site: object) -> bool:
        return True

    def __iter__(self):
        return iter(())


class EditEach(Mapping[Site, AbstractEdit]):
    """For `edits`: at every site that the run comes by the edit that a function of the site gives, `None` for no edit."""

    def __init__(self, edit: Callable[[Site], AbstractEdit | None]):
        self.edit = edit

    def __contains__(self, site: object) -> bool:
        return isinstance(site, Site) and self.edit(site) is not None

    def __getitem__(self, site: Site) -> AbstractEdit:
        edit = self.edit(site)
        if edit is None:
            raise KeyError(site)
        return edit

    def __iter__(self) -> Iterator[Site]:
        return iter(())

    def __len__(self) -> int:
        return 0


class Tap:
    """Splices, edits and records. `tap.at(layer)` is the same tap seen from inside a block."""

    def __init__(
        self,
        saes: Mapping[Site, AbstractDictionary],
        edits: Mapping[Site, AbstractEdit],
        record: Container[Site],
        *,
        layer: int | None = None,
    ):
        self.saes, self.edits, self.record, self.layer = saes, edits, record, layer
        self.reads = {site_read(site, sae) for site, sae in saes.items()}
        self.inputs: dict[Site, Array] = {}
        self.cache: dict[Site, Array] = {}
        self.seen: dict[Site, None] = {}  # a set that keeps the order of execution

    def at(self, layer: int) -> "Tap":
        inside = Tap(self.saes, self.edits, self.record, layer=layer)
        inside.reads, inside.inputs, inside.cache, inside.seen = self.reads, self.inputs, self.cache, self.seen
        return inside

    def __call__(self, kind: Kind, x: Float[Array, "..."]) -> Float[Array, "..."]:
        site = Site(self.layer, kind)
        if site in self.saes:
            x = self._splice(site, self.saes[site], x)
        x = self._visit(site, x)
        if site in self.reads:
            self.inputs[site] = x
        return x

    def uses(self, kind: Kind) -> bool:
        """Whether anything asks for this site: what is costly and unasked for need not be computed."""
        site = Site(self.layer, kind)
        return site in self.edits or site in self.record or site in self.saes or site in self.reads

    @property
    def is_listed(self) -> bool:
        """Whether what is asked for is a list of sites; all that are recorded count as one."""
        kinds = dict | set | frozenset | tuple | list | MappingProxyType
        recorded = isinstance(self.record, kinds | Everything)
        return recorded and all(isinstance(sites, kinds) for sites in (self.edits, self.saes))

    def uses_layer(self, layer: int) -> bool:
        """Whether anything may ask for a site in this layer. Of what cannot be listed, it may."""
        if not self.is_listed or isinstance(self.record, Everything):
            return True
        asked = (self.edits, self.record, self.saes, self.reads)
        return any(site.layer == layer for sites in asked for site in sites)  # pyright: ignore[reportGeneralTypeIssues]

    def _splice(self, site: Site, sae: AbstractDictionary, x: Float[Array, "..."]) -> Float[Array, "..."]:
        flat = lambda x: x.reshape(x.shape[0], -1)  # a dictionary on z reads all heads as one vector
        reads = site_read(site, sae)
        read = x if reads == site else self._input(site, reads)
        sae.check_width(site, flat(read).shape[-1], flat(x).shape[-1])
        unedited = sae.encode(flat(read))
        acts = self._visit(site.acts, unedited)
        beside = flat(self._visit(site.input, read)) if sae.decoder_reads_input else None
        # The error is that of the unedited latents, so that splicing alone changes nothing; and it is measured where the decoder reads, so
        # that holding what that is changes only what is called error.
        error = self._visit(site.error, (flat(x) - sae.decode(unedited, beside)).reshape(x.shape))
        return sae.decode(acts, beside).reshape(x.shape) + error

    def _input(self, site: Site, reads: Site) -> Float[Array, "..."]:
        if reads not in self.inputs:
            raise ValueError(
                f"run(saes=…): the dictionary at `{site}` reads `{reads}`, which the model does not compute before it."
            )
        return self.inputs[reads]

    def _visit(self, site: Site, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if site in self.edits:
            x = self._edit(site, x)
        if site in self.record:
            self.cache[site] = x
        self.seen[site] = None
        return x

    def _edit(self, site: Site, x: Float[Array, "..."]) -> Float[Array, "..."]:
        edit = self.edits[site]
        try:
            edited = edit.along(x, position_axis(site)) if isinstance(edit, At) else edit(x)
        except EditShapeError as error:
            raise ValueError(f"run(edits=…): at `{site}`, {error}") from None
        if jnp.shape(edited) != x.shape:
            raise ValueError(
                f"run(edits=…): at `{site}` the value has shape {x.shape}, and {type(edit).__name__} made it "
                f"{jnp.shape(edited)}; an edit keeps the shape."
            )
        if not jnp.issubdtype(jnp.result_type(edited), jnp.floating):
            raise TypeError(
                f"run(edits=…): at `{site}` the value is of floating-point numbers, and {type(edit).__name__} made it "
                f"{jnp.result_type(edited)}; an edit keeps it so."
            )
        return wide(edited)  # a function of the user's own may hand back half precision

    def check_all_used(self, model: str, n_layers: int, record: Container[Site], verb: str = "run") -> None:
        """ValueError for an edit, a recording or a dictionary at a site that the forward pass never came by."""
        asked = {"edits": self.edits, "record": record, "saes": self.saes}
        for argument, sites in asked.items():
            for site in sites:  # pyright: ignore[reportGeneralTypeIssues]  # whoever checks gives what can be listed
                if site not in self.seen:
                    raise ValueError(
                        f"{verb}({argument}=…): no site `{site}` in {model} with {n_layers} layers{self._hint(site)}"
                    )

    def _hint(self, site: Site) -> str:
        if site.value in self.saes and site.value in self.seen:
            return f": the decoder of the dictionary at `{site.value}` reads nothing but its latents."
        if site.part != site.value.part and site.value in self.seen:
            return f": there is no dictionary at `{site.value}`. Pass saes={{…}} with one there."
        return f". {did_you_mean(str(site), map(str, self.seen))}"


def position_axis(site: Site) -> int:
    """Along which axis of its value a site's positions are: of attention those of queries, behind the heads."""
    return 1 if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN) else 0


def site_read(site: Site, sae: AbstractDictionary) -> Site:
    """Where the dictionary used at `site` reads: there too, but for a transcoder."""
    return site if sae.reads is None else sae.reads


def bare_tap(layer: int | None = None) -> Tap:
    """Nothing is edited, and nothing recorded."""
    return Tap({}, {}, frozenset(), layer=layer)
