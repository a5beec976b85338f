"""The two ends of a feature Jacobian: which dictionaries, where they are, and which of them replace their site."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from .._run import check_dictionaries, site_shapes, sites
from .._sites import did_you_mean, Kind, Site
from .._tap import site_read
from ..graph import reaches
from ..linear import LOCAL
from ..models import Transformer
from ..saes import AbstractDictionary, anonymous


SIDES = ("source", "target")


class Ends(NamedTuple):
    """Where the dictionaries are and what they read; `replaced`: whether the source's replaces its site. Static, as sites are."""

    source: Site
    source_read: Site
    target: Site
    target_read: Site
    replaced: bool


class Dictionaries(NamedTuple):
    """Both dictionaries without their names, so that those of all sites of one kind share programs."""

    source: AbstractDictionary
    target: AbstractDictionary


def find_ends(
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    source: Site,
    target: Site,
    replaced: tuple[str, ...],
) -> tuple[Ends, Dictionaries]:
    """Both ends. **Raises:** `ValueError` if there is no Jacobian between them."""
    for site in (source, target):
        if site not in saes:
            there = ", ".join(f"`{known}`" for known in saes) or "none"
            raise ValueError(
                f"feature_jacobian: there is no dictionary at `{site}`. The dictionaries given are at: {there}."
            )
    chosen = {site: saes[site] for site in (source, target)}
    known = sites(model)
    reads = {site: site_read(site, sae) for site, sae in chosen.items()}
    for site in (*chosen, *reads.values()):
        if site not in known:
            raise ValueError(
                f"feature_jacobian: no site `{site}` in {model.name} with {model.n_layers} layers. "
                f"{did_you_mean(str(site), map(str, known))}"
            )
    check_dictionaries(model, chosen)
    _check_kinds(source, reads[target])
    shapes = site_shapes(model, 1)
    width = lambda site: shapes[site].size
    for site, sae in chosen.items():
        sae.check_width(site, width(reads[site]), width(site))
    if source == target or not reaches(model, source.acts, target.acts, (), chosen):
        raise ValueError(
            f"feature_jacobian: the latents of the target `{target}`, which read `{reads[target]}`, do not depend on the source "
            f"`{source}`: it is not upstream of them. Are they swapped?"
        )
    ends = Ends(source, reads[source], target, reads[target], "source" in replaced)
    return ends, Dictionaries(anonymous(chosen[source]), anonymous(chosen[target]))


def _check_kinds(source: Site, read: Site) -> None:
    embedded = (Kind.EMBED, Kind.POS_EMBED)
    for site, kinds in ((source, (*embedded, *LOCAL)), (read, LOCAL)):
        if site.kind not in kinds:
            raise ValueError(
                f"feature_jacobian: `{site}` is not a vector at each position of a block; latents are taken of residual streams, of what "
                "attention and MLPs read, hold and write, and as sources of the embeddings."
            )


def named_sides(substitute: Iterable[str]) -> tuple[str, ...]:
    """The sides that are named, in order."""
    named = {substitute} if isinstance(substitute, str) else set(substitute)
    if unknown := sorted(map(repr, named - set(SIDES))):
        raise ValueError(f"feature_jacobian: substitute names 'source', 'target', both or none; got {unknown[0]}.")
    return tuple(side for side in SIDES if side in named)
