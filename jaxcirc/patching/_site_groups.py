"""Sites that are asked for together: one kind of them in all layers, by a short name, or single ones."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from .._run import site_shapes
from .._sites import did_you_mean, Kind, Part, Site
from ..models import Transformer
from ..saes import AbstractDictionary


SiteGroup: TypeAlias = str | Kind | Site
ANY = "any layer"
PARTS = {Part.VALUE: "", Part.ACTS: ".acts", Part.ERROR: ".error"}
OF_HEADS = frozenset(
    {
        *(Kind.Q, Kind.K, Kind.V, Kind.Q_SCALE, Kind.Q_NORMALIZED, Kind.K_SCALE, Kind.K_NORMALIZED, Kind.ROT_Q),
        *(Kind.ROT_K, Kind.ATTN_SCORES, Kind.PATTERN, Kind.Z, Kind.RESULT),
    }
)
_SHORT = {kind.name.lower() + suffix: (kind, part) for part, suffix in PARTS.items() for kind in Kind}


def group_name(site: Site) -> str:
    """The short name of a site's kind: "resid_pre", "z", "mlp_post"; of a dictionary's part "resid_post.acts"."""
    return site.kind.name.lower() + PARTS[site.part]


def site_groups(
    who: str,
    model: Transformer,
    saes: Mapping[Site, AbstractDictionary],
    wanted: SiteGroup | Sequence[SiteGroup],
) -> dict[str, tuple[Site, ...]]:
    """Finds the sites that are asked for, those of a kind together, in execution order. **Raises:** `ValueError` for one that is not
    there, or that is behind the blocks.
    """
    listed = [wanted] if isinstance(wanted, str | Site) else list(wanted) if isinstance(wanted, Iterable) else [wanted]
    if not listed:
        raise ValueError(f"{who}: no site was asked for. Give a kind of site, such as 'resid_pre', or a list of them.")
    known = _known(model, saes)
    found = {site for each in listed for site in _sites(who, model, known, each)}
    groups: dict[str, tuple[Site, ...]] = {}
    for site in sorted(found):
        groups[group_name(site)] = (*groups.get(group_name(site), ()), site)
    return groups


def check_of_heads(who: str, by: str, groups: Mapping[str, tuple[Site, ...]]) -> None:
    """ValueError for sites at which heads have no values of their own."""
    for name, sites in groups.items():
        if sites[0].kind not in OF_HEADS or sites[0].part != Part.VALUE:
            raise ValueError(
                f"{who}: by={by!r} replaces one head at a time, and `{sites[0]}` is not of single heads. Those that are: 'z', 'q', 'k', "
                f"'v', 'pattern' and the like. For {name!r} take by='layer' or by='layer_position'."
            )


def _known(model: Transformer, saes: Mapping[Site, AbstractDictionary]) -> list[Site]:
    """Lists every site of the embedding and the blocks, and the latents and errors of dictionaries."""
    inside = [site for site in site_shapes(model, 1) if site.kind <= Kind.RESID_POST]
    return [*inside, *(part for site in saes for part in (site.acts, site.error))]


def _sites(who: str, model: Transformer, known: Sequence[Site], wanted: SiteGroup) -> list[Site]:
    """Finds one site, or all of a kind."""
    layer, kind, part = _asked(who, known, wanted)
    found = [site for site in known if (site.kind, site.part) == (kind, part) and layer in (ANY, site.layer)]
    if not found:
        name = repr(group_name(Site(0 if kind.in_block else None, kind, part))) if layer == ANY else f"`{wanted}`"
        raise ValueError(f"{who}: {_missing(model, name, kind, part)}")
    return found


def _asked(who: str, known: Sequence[Site], wanted: SiteGroup) -> tuple[int | str | None, Kind, Part]:
    """Reads the layer, `ANY` for all, the kind and the part that are asked for."""
    if isinstance(wanted, str) and wanted in _SHORT:
        return ANY, *_SHORT[wanted]
    if isinstance(wanted, Kind):
        return ANY, wanted, Part.VALUE
    if not isinstance(wanted, str | Site):
        raise TypeError(f"{who}: expected a kind of site such as 'resid_pre', or a site, got {wanted!r}.")
    try:
        site = Site.parse(wanted)
    except ValueError:
        names = [*dict.fromkeys(map(group_name, known)), *map(str, known)]
        raise ValueError(
            f"{who}: no site or kind of site is called {wanted!r}. {did_you_mean(str(wanted), names)}"
        ) from None
    return site.layer, site.kind, site.part


def _missing(model: Transformer, name: str, kind: Kind, part: Part) -> str:
    """Says why there is no such site among those that can be patched."""
    if part != Part.VALUE:
        return f"{name} is of a dictionary, and there is none there. Pass saes={{…}} with one there."
    if kind > Kind.RESID_POST:
        return f"{name} is behind the blocks. Patch what is in front: `{Site(model.n_layers - 1, Kind.RESID_POST)}`."
    return f"there is no site {name} in {model.name} with {model.n_layers} layers."
