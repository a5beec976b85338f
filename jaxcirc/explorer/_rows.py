"""What rows of sites are called, in a word or two."""

from .._sites import Kind, Site


_SHORT = {
    Kind.EMBED: "embed",
    Kind.RESID_PRE: "resid in {}",
    Kind.RESID_MID: "resid mid {}",
    Kind.RESID_POST: "resid {}",
    Kind.Z: "heads {}",
    Kind.ATTN_OUT: "attn {}",
    Kind.MLP_POST: "neurons {}",
    Kind.MLP_OUT: "mlp {}",
}


def short(site: str) -> str:
    """Shortens a site's name to how a row is labelled."""
    parsed = Site.parse(site)
    if parsed == Site(0, Kind.RESID_PRE):
        return "embed"
    return _SHORT.get(parsed.kind, str(parsed)).format(parsed.layer)
