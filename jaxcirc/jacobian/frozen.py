"""Sets of sites to hold: `jc.edge(…, frozen=jc.frozen.patterns(model))`. They are sets, so they unite by `|`."""

from .._run import sites
from .._sites import Kind, Site
from ..models import Transformer


def layer_norms(model: Transformer) -> frozenset[Site]:
    """The scales of all norms: with them held a norm is linear, up to its bias. They are those of the norms before attention and the MLP,
    behind them, of queries and keys, and of the final one, whichever a model has.

    >>> sorted(map(str, jc.frozen.layer_norms(model)))[0]
    'blocks.0.ln1.hook_scale'
    """
    return _of_kinds(model, *_SCALES)


_SCALES = (
    Kind.LN1_SCALE,
    Kind.Q_SCALE,
    Kind.K_SCALE,
    Kind.LN1_POST_SCALE,
    Kind.LN2_SCALE,
    Kind.LN2_POST_SCALE,
    Kind.FINAL_SCALE,
)


def patterns(model: Transformer) -> frozenset[Site]:
    """The attention patterns of all layers: with them held attention is linear in the values."""
    return _of_kinds(model, Kind.PATTERN)


def between(model: Transformer, source: Site | str, target: Site | str) -> frozenset[Site]:
    """The outputs of every sublayer between `source` and `target`, so that what is left is their direct connection.

    >>> sorted(map(str, jc.frozen.between(model, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")))
    ['blocks.1.hook_attn_out', 'blocks.1.hook_mlp_out']
    """
    first, last = Site.parse(source), Site.parse(target)
    return frozenset(site for site in _of_kinds(model, Kind.ATTN_OUT, Kind.MLP_OUT) if first < site < last)


def _of_kinds(model: Transformer, *kinds: Kind) -> frozenset[Site]:
    return frozenset(site for site in sites(model) if site.kind in kinds)
