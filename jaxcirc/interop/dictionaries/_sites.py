"""Sites from the names that files and folders of dictionaries go by."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..._sites import Kind, Site


_SUBMODULE = re.compile(r"(resid_out|resid_post|attn_out|mlp_out)_layer_?(\d+)")
_KINDS = {
    "resid_out": Kind.RESID_POST,
    "resid_post": Kind.RESID_POST,
    "attn_out": Kind.ATTN_OUT,
    "mlp_out": Kind.MLP_OUT,
}


def of_submodule(name: str) -> Site | None:
    """The site of a submodule's name in dictionary_learning and feature-circuits, `mlp_out_layer3` or `embed`; `None` for another."""
    if name == "embed":
        return Site(None, Kind.EMBED)
    match = _SUBMODULE.fullmatch(name)
    return None if match is None else Site(int(match[2]), _KINDS[match[1]])


def of_folder(path: Path) -> Site | None:
    """The site that the nearest folder above `path` names as a submodule."""
    return next((site for folder in path.parents if (site := of_submodule(folder.name)) is not None), None)


def agreed(found: Iterable[tuple[str, Site | None]], given: Site | None, source: str) -> Site | None:
    """The one site that `found`, pairs of (who says so, site), names; what the caller gave goes before.

    **Raises:** `ValueError` if two disagree.
    """
    if given is not None:
        return given
    said = [(who, site) for who, site in found if site is not None]
    if len({site for _, site in said}) > 1:
        raise ValueError(
            f"{source}: its site is ambiguous, {' and '.join(f'{who} says `{site}`' for who, site in said)}. Say it: site=…."
        )
    return said[0][1] if said else None


def parsed(name: object, source: str, attribute: str) -> Site | None:
    """The site of a hook's name in a configuration, `None` for none."""
    if not name:
        return None
    try:
        return Site.parse(str(name))
    except ValueError as error:
        raise ValueError(
            f"{source}: {attribute} is {name!r}. {error} To load it for another site, pass site=…."
        ) from None
