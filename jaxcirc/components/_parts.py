"""Components of a model: heads, whole sites, latents."""

import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._checks import check_list
from .._run import site_shapes
from .._sites import did_you_mean, Kind, Part as SitePart, Site
from ..models import Transformer
from ..saes import AbstractDictionary


Component: TypeAlias = tuple[int, int] | tuple[Site | str, int] | Site | str


class Place(NamedTuple):
    """A site, and which of its heads or latents; `None` for all of it."""

    site: Site
    unit: int | None


def place_of(model: Transformer, saes: Mapping[Site, AbstractDictionary], component: Component) -> Place:
    """Finds where a component is. **Raises:** `ValueError` if it is nowhere."""
    if isinstance(component, Site | str):
        return Place(_whole(model, saes, Site.parse(component)), None)
    if not (isinstance(component, Sequence) and len(component) == 2 and isinstance(component[1], numbers.Integral)):
        raise TypeError(
            f"A part is (layer, head), a site or its name, or (site, unit) of a dictionary's latent; got {component!r}."
        )
    where, index = component
    if isinstance(where, numbers.Integral):
        check_head(model, int(where), int(index))
        return Place(Site(int(where), Kind.Z), int(index))
    site = Site.parse(where).value  # pyright: ignore[reportArgumentType]  # what is neither is told there
    if site not in saes:
        raise ValueError(
            f"({str(site)!r}, {index}) is a latent, and there is no dictionary at `{site}`. Pass saes={{…}} with one there."
        )
    if not 0 <= index < saes[site].d_sae:
        raise ValueError(
            f"({str(site)!r}, {index}): the dictionary at `{site}` has {saes[site].d_sae} latents, 0 to {saes[site].d_sae - 1}."
        )
    return Place(site.acts, int(index))


def _whole(model: Transformer, saes: Mapping[Site, AbstractDictionary], site: Site) -> Site:
    if site.value not in (shapes := site_shapes(model, 1)):
        raise ValueError(
            f"There is no site `{site}` in {model.name} with {model.n_layers} layers. {did_you_mean(str(site), map(str, shapes))}"
        )
    if site.part != SitePart.VALUE and site.value not in saes:
        raise ValueError(
            f"`{site}` is of a dictionary, and there is none at `{site.value}`. Pass saes={{…}} with one there."
        )
    if site.part == SitePart.INPUT:
        raise ValueError(
            f"`{site}` is what a decoder reads, and takes no part in the run by itself. Ablate `{site.value.acts}` or `{site.value.error}`."
        )
    if site.kind in (Kind.ATTN_SCORES, Kind.PATTERN, Kind.LOGITS):
        raise ValueError(
            f"`{site}` is not a component's output. Ablate `{Site(site.layer or 0, Kind.Z)}`, or a head of it as (layer, head)."
        )
    return site


def check_layer(model: Transformer, layer: int) -> None:
    """ValueError for a layer that there is not."""
    if not 0 <= layer < model.n_layers:
        raise ValueError(
            f"There is no layer {layer} in {model.name}: it has {model.n_layers} layers, 0 to {model.n_layers - 1}."
        )


def check_head(model: Transformer, layer: int, head: int) -> None:
    """ValueError for a head that there is not."""
    check_layer(model, layer)
    if not 0 <= head < model.n_heads:
        raise ValueError(
            f"There is no head ({layer}, {head}) in {model.name}: its layers have {model.n_heads} heads, 0 to {model.n_heads - 1}."
        )


def check_layers(name: str, model: Transformer, layers: Iterable[int]) -> list[int]:
    """Layers as whole numbers. **Raises:** `TypeError` for what is no list of such, `ValueError` for one that there is not."""
    found = []
    for layer in check_list(name, "layers", layers):
        if (number := _whole_numbers([layer])) is None:
            raise TypeError(f"{name}: expected a list of layers, as whole numbers; {layer!r} is none.")
        check_layer(model, *number)
        found += number
    return found


def check_heads(name: str, model: Transformer, heads: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    """Heads as `(layer, head)`. **Raises:** `TypeError` for what is no list of such, `ValueError` for one that there is not."""
    found = []
    for head in check_list(name, "heads as (layer, head)", heads):
        pair = _whole_numbers(head)
        if pair is None or len(pair) != 2:
            raise TypeError(f"{name}: expected a list of heads as (layer, head); {head!r} is none.")
        check_head(model, *pair)
        found.append((pair[0], pair[1]))
    return found


def _whole_numbers(values: Any) -> list[int] | None:
    """Also of scalars of NumPy and JAX; `None` for what are none."""
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return None


def membership(
    model: Transformer, saes: Mapping[Site, AbstractDictionary], places: Sequence[Place]
) -> dict[Site, Bool[Array, "part ..."]]:
    """For each site which of its parts each place is, in a shape that broadcasts to the site's value."""
    out = {}
    for site in sorted({place.site for place in places}):
        by_head = site.kind == Kind.Z and site.part == SitePart.VALUE
        size = saes[site.value].d_sae if site.part == SitePart.ACTS else model.n_heads if by_head else 1
        member = np.zeros((len(places), size), bool)
        for row, place in enumerate(places):
            if place.site == site:
                member[row, slice(None) if place.unit is None else place.unit] = True
        out[site] = jnp.asarray(member[..., None] if by_head else member)
    return out
