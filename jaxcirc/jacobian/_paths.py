r"""Which way it goes: the Jacobian of a block by its paths, and of an edge by what mediates it.

In a sequential block the residual stream $x$ becomes $x + a(x) + m(x + a(x))$, so its Jacobian is the sum over four paths,

$$J = I + J_a + J_m + J_m J_a,$$

with $J_m$ at the clean middle of the block; in a parallel one it becomes $x + a(x) + m(x)$, and there is no $J_m J_a$. What passes a
site with a dictionary passes its latents or its error: the parts of a mediated path are products of two Jacobians each,
$J_{f \to t} J_{s \to f} + J_{\varepsilon \to t} J_{s \to \varepsilon}$.

Some decoders read what was encoded beside the latents: to undo its normalisation, or to pass it on linearly. In every decomposition that
input is held at its clean value, and the error is what the latents leave there, $\varepsilon = x - \mathrm{decode}(f, \bar x)$: then
latents and error are all that there is to pass.
"""

import functools as ft
import itertools
from collections.abc import Iterable, Mapping

import equinox as eqx

from .._checks import check_number
from .._run import check_model, NOTHING
from .._shown import Shown
from .._sites import by_site, Kind, Part, Site
from .._typing import Keys, Tokens
from ..graph import reaches
from ..models import Transformer
from ..saes import AbstractDictionary, Saes
from ._edge import edge
from ._operator import EdgeJacobian


def block_paths(
    model: Transformer,
    tokens: Tokens,
    layer: int,
    *,
    frozen: Iterable[Site | str] = (),
    saes: Saes = NOTHING,
    mask: Keys | None = None,
    engine: str = "auto",
) -> dict[str, EdgeJacobian]:
    """The Jacobian from `resid_pre` to `resid_post` of one block, path by path.

    **Arguments:** - `saes`: with a dictionary at the block's `hook_attn_out` or `hook_mlp_out` every path through it is split into the
    one through its latents and the one through its error. Where its decoder reads its input (normalised dictionaries, skip transcoders)
    that is held at its clean value, and the error is what the latents leave there. - `frozen`, `mask`, `engine`: as in `jc.edge`.

    **Returns:** `{"skip", "attn", "mlp", "attn_mlp"}`: operators whose sum is the total Jacobian; `attn` and `mlp` are without the skip,
    `attn_mlp` is what passes both, and not there in a parallel block. A path through a dictionary has a name for each part:
    `"attn:acts"`, `"attn:error"`, `"attn_mlp:acts:error"`. What leads nowhere is not there, such as latents that read before the path
    begins. A model of attention only has `skip` and `attn`.

    **Raises:** `ValueError` for a layer that the model does not have, a path that is frozen, and as `jc.edge`.

    >>> paths = jc.block_paths(model, tokens, 1)
    >>> total = jc.edge(model, tokens, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post").as_matrix()
    >>> bool(jnp.allclose(sum(J.as_matrix() for J in paths.values()), total, atol=1e-4))
    True

    **Reference:** Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", path expansion; mediation as in Marks et al.
    2024, arXiv 2403.19647, appendix A.1.
    """
    check_model(model)
    check_number("block_paths: layer", layer)
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"block_paths: {model.name} has layers 0 to {model.n_layers - 1}, got {layer}.")
    saes, frozen = by_site(saes), frozenset(map(Site.parse, frozen))
    pre, attn, mlp, post = (
        Site(layer, kind) for kind in (Kind.RESID_PRE, Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)
    )
    sublayers = {"attn": attn} if model.blocks[layer].mlp is None else {"attn": attn, "mlp": mlp}
    chosen = (names for count in range(len(sublayers) + 1) for names in itertools.combinations(sublayers, count))
    between = lambda start, end: {site for site in sublayers.values() if start.value < site < end.value}

    def leg_of(ends: tuple[Site, Site]) -> EdgeJacobian:
        held = {*frozen, *between(*ends), *_held_of(ends[1], saes)}
        return edge(model, tokens, *ends, frozen=held, saes=saes, mask=mask, engine=engine)

    paths = {}
    for names in chosen:
        for parts in itertools.product(*(_parts(sublayers[name], saes) for name in names)):
            legs = list(itertools.pairwise([pre, *parts, post]))
            if all(reaches(model, *leg, between(*leg), saes) for leg in legs):
                suffix = "".join(f":{_LABELS[part.part]}" for part in parts if part.part in _LABELS)
                paths[("_".join(names) or "skip") + suffix] = ft.reduce(lambda out, leg: leg @ out, map(leg_of, legs))
    return paths


class MediatedEdges(Shown, eqx.Module):
    """An edge by what mediates it, each part an operator from source to target.

    **Attributes:**

    - `total`: along every path; `direct`: along those that do not pass the mediator, `None` if there are none; `mediated`: along those
      that do. `total = direct + mediated`.
    - `acts`, `error`: what is mediated by the latents and by the error of the mediator's dictionary, `mediated = acts + error`. Where its
      decoder reads its input, that is held at its clean value, and the error is what the latents leave there. `None` without a dictionary
      there, or where no path leads through that part.
    - `input`: the share of `error` that passes the decoder's input: what the decoder makes of it at the clean latents. The error of a run,
      in which that input is live, mediates `error - input`. `None` for dictionaries whose decoder reads nothing but latents.
    """

    total: EdgeJacobian
    direct: EdgeJacobian | None
    mediated: EdgeJacobian
    acts: EdgeJacobian | None
    error: EdgeJacobian | None
    input: EdgeJacobian | None


def mediated_edges(
    model: Transformer,
    saes: Saes,
    tokens: Tokens,
    source: Site | str,
    mediator: Site | str,
    target: Site | str,
    *,
    frozen: Iterable[Site | str] = (),
    mask: Keys | None = None,
    engine: str = "auto",
) -> MediatedEdges:
    """The edge from `source` to `target`, split by whether it passes `mediator`, and through which part of its dictionary.

    **Arguments:** - `source`, `target`: any sites, latents and errors too. - `mediator`: a site between them; with a dictionary of
    `saes` there, its latents and its error mediate apart. Where its decoder reads its input (normalised dictionaries, skip transcoders)
    that is held at its clean value, and the error is what the latents leave there. - the rest as `jc.edge`.

    **Returns:** `MediatedEdges`. **Raises:** `ValueError` as `jc.edge`, among others if nothing passes the mediator, and for a source
    that is itself a part of the mediator's dictionary.

    >>> site = jc.Site.parse("blocks.1.hook_mlp_out")
    >>> parts = jc.mediated_edges(model, saes, tokens, "blocks.1.hook_resid_pre", site, "blocks.1.hook_resid_post")
    >>> v = jnp.ones(parts.total.source_shape)
    >>> bool(jnp.allclose(parts.acts.mv(v) + parts.error.mv(v) + parts.direct.mv(v), parts.total.mv(v), atol=1e-3))
    True

    **Reference:** Marks et al. 2024, arXiv 2403.19647, appendix A.1. In its implementation what an error node mediates is 0.
    """
    saes, stopped = by_site(saes), frozenset(map(Site.parse, frozen))
    source, mediator, target = (Site.parse(site) for site in (source, mediator, target))
    if mediator in saes and source.value == mediator:
        raise ValueError(
            f"mediated_edges: the source `{source}` is at the mediator `{mediator}`, so there is nothing to split. Give a site after it."
        )

    def between(start: Site, end: Site, *held: Site) -> EdgeJacobian:
        return edge(model, tokens, start, end, frozen={*stopped, *held}, saes=saes, mask=mask, engine=engine)

    def through(site: Site, *held: Site) -> EdgeJacobian:
        return between(site, target, *held) @ between(source, site, *_held_of(site, saes))

    def part(site: Site, *held: Site) -> EdgeJacobian | None:
        leads = lambda start, end: reaches(model, start, end, stopped, saes)
        there = mediator in saes and site not in stopped and leads(source, site) and leads(site, target)
        return through(site, *held) if there else None

    beside = (mediator, *_held_of(mediator, saes))
    return MediatedEdges(
        total=between(source, target),
        direct=between(source, target, *beside) if reaches(model, source, target, {*stopped, *beside}, saes) else None,
        mediated=through(mediator),
        acts=part(mediator.acts),
        error=part(mediator.error),
        input=part(mediator.input, mediator.error),
    )


_LABELS = {Part.ACTS: "acts", Part.ERROR: "error"}


def _parts(site: Site, saes) -> tuple[Site, ...]:
    return (site.acts, site.error) if site in saes else (site,)


def _held_of(end: Site, saes: Mapping[Site, AbstractDictionary]) -> set[Site]:
    """Says what is held on the way to a part of a decomposition: for an error what its decoder reads."""
    sae = saes.get(end.value)
    return {end.value.input} if end.part == Part.ERROR and sae is not None and sae.decoder_reads_input else set()
