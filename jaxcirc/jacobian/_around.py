"""Which MLP two sites lie around, and what of its block is between them."""

from collections.abc import Collection

import jax.numpy as jnp

from .._checks import check_count
from .._run import site_shapes
from .._sites import did_you_mean, Kind, layer_of, Site
from ..linear._local import has_closed_form, has_local_maps
from ..linear._slots import slots
from ..models import check_known, Transformer
from ._edge import check_ends
from ._sublayer import Sublayer


def ends_around(
    verb: str, model: Transformer, layer: int | None, source: Site | str | None, target: Site | str | None
) -> tuple[Site, Site]:
    """Both ends: of a layer what its MLP reads and what it adds, where no other is named.

    **Raises:** `ValueError` for a layer that there is not, without an MLP, or neither a layer nor a source.
    """
    named = [Site.parse(site) for site in (source, target) if site is not None]
    if layer is None:
        if not named or named[0].layer is None:
            raise ValueError(f"{verb}: of which MLP? Give its layer, or the sites around it, source and target.")
        layer = layer_of(named[0])
    else:
        check_count(f"{verb}: layer", "blocks come before that of the MLP", layer, least=0)
    if layer >= model.n_layers:
        raise ValueError(f"{verb}: {model.name} has layers 0 to {model.n_layers - 1}; got layer {layer}.")
    block = model.blocks[layer]
    if getattr(block, "mlp", None) is None:
        raise ValueError(f"{verb}: block {layer} of {model.name} has no MLP.")
    start = Site(layer, block.mlp_reads) if source is None else Site.parse(source)
    end = Site(layer, Kind.MLP_OUT) if target is None else Site.parse(target)
    known = site_shapes(model, 1)
    for site in (start, end):
        if site not in known:
            raise ValueError(f"{verb}: no site `{site}` in {model.name}. {did_you_mean(str(site), map(str, known))}")
    streams = [Site(layer, block.mlp_reads), Site(layer, Kind.MLP_IN)]
    ends = [Site(layer, Kind.MLP_OUT), *([Site(layer, Kind.RESID_POST)] if block.has_middle else [])]
    if start not in streams or end not in ends:
        raise ValueError(
            f"{verb}: `{start}` and `{end}` are not around the MLP of one block, with nothing beside it between them. For block {layer} "
            f"the source is {' or '.join(f'`{site}`' for site in streams)}, and the target {' or '.join(f'`{site}`' for site in ends)}."
        )
    return start, end


def sublayer_between(
    verb: str, model: Transformer, source: Site, target: Site, frozen: Collection[Site | str]
) -> Sublayer:
    """What is between two sites around an MLP.

    **Raises:** `ValueError` if that mixes positions, if nothing flows, and for a block of another class.
    """
    check_known(verb, model)
    held = frozenset(map(Site.parse, frozen))
    check_ends(model, source, target, held, {}, verb=verb)
    block = model.blocks[layer_of(source)]
    whole = source.kind != Kind.MLP_IN
    inside = frozenset(
        site.kind
        for site in held
        if site.layer == source.layer and source < site < target and site.kind > Kind.RESID_MID
    )
    x = jnp.zeros((1, model.d_model), model.activation_dtype)
    for slot in slots(block):
        part = slot.part(block)
        if slot.branch == "mlp" and not has_closed_form(part) and not has_local_maps(slot, part, x):
            raise ValueError(
                f"{verb}: `blocks.{source.layer}.{slot.name}` is a {type(part).__name__} whose positions take part in one another, and the "
                "mean is of what each makes of itself. Prompt by prompt jc.edge takes it."
            )
    before = block.ln2 if whole else None
    return Sublayer(before, block.mlp, block.ln2_post, whole and target.kind == Kind.RESID_POST, inside)
