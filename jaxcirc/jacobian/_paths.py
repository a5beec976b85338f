r"""Which way it goes: the Jacobian of a block by its paths, and of an edge by what mediates it.

In a sequential block the residual stream $x$ becomes $x + a(x) + m(x + a(x))$, so its Jacobian is the sum over four paths,

$$J = I + J_a + J_m + J_m J_a,$$

with $J_m$ at the clean middle of the block; in a parallel one it becomes $x + a(x) + m(x)$, and there is no $J_m J_a$. What passes a
site with a dictionary passes its latents or its error: the parts of a mediated path are products of two Jacobians each,
$J_{f \to t} J_{s \to f} + J_{\varepsilon \to t} J_{s \to \varepsilon}$.
"""

import itertools
from collections.abc import Iterable

import equinox as eqx

from .._run import NOTHING
from .._sites import by_site, Kind, Site
from .._typing import Keys, Tokens
from ..models import Transformer
from ._edge import edge, Saes
from ._graph import reaches
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
    one through its latents and the one through its error. - `frozen`, `mask`, `engine`: as in `jc.edge`.

    **Returns:** `{"skip", "attn", "mlp", "attn_mlp"}`: operators whose sum is the total Jacobian; `attn` and `mlp` are without the skip,
    `attn_mlp` is what passes both, and not there in a parallel block. A path through a dictionary has a name for each part:
    `"attn:acts"`, `"attn:error"`, `"attn_mlp:acts:error"`. A model of attention only has `skip` and `attn`.

    **Raises:** `ValueError` for a layer that the model does not have, a path that is frozen, and as `jc.edge`.

    >>> paths = jc.block_paths(model, tokens, 1)
    >>> total = jc.edge(model, tokens, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post").as_matrix()
    >>> bool(jnp.allclose(sum(J.as_matrix() for J in paths.values()), total, atol=1e-4))
    True

    **Reference:** Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", path expansion; mediation as in Marks et al.
    2024, arXiv 2403.19647, appendix A.1.
    """
    if not 0 <= layer < model.n_layers:
        raise ValueError(f"block_paths: {model.name} has layers 0 to {model.n_layers - 1}, got {layer}.")
    saes, frozen = by_site(saes), tuple(frozen)
    pre, attn, mlp, post = (
        Site(layer, kind) for kind in (Kind.RESID_PRE, Kind.ATTN_OUT, Kind.MLP_OUT, Kind.RESID_POST)
    )
    sublayers = {"attn": attn} if model.blocks[layer].mlp is None else {"attn": attn, "mlp": mlp}
    chosen = (names for count in range(len(sublayers) + 1) for names in itertools.combinations(sublayers, count))
    paths = {}
    for names in chosen:
        if len(names) == 2 and model.blocks[layer].parallel:
            continue
        options = [_parts(sublayers[name], saes) for name in names]
        for parts in itertools.product(*options):
            suffix = "".join(f":{'acts' if part == part.acts else 'error'}" for part in parts if part != part.value)
            stops = [pre, *parts, post]
            legs = []
            for start, end in itertools.pairwise(stops):
                held = {site for site in sublayers.values() if start.value < site < end.value}
                legs.append(
                    edge(model, tokens, start, end, frozen={*frozen, *held}, saes=saes, mask=mask, engine=engine)
                )
            paths[("_".join(names) or "skip") + suffix] = _product(legs)
    return paths


class MediatedEdges(eqx.Module):
    """An edge by what mediates it, each part an operator from source to target.

    **Attributes:**

    - `total`: along every path; `direct`: along those that do not pass the mediator, `None` if there are none; `mediated`: along those
      that do. `total = direct + mediated`.
    - `acts`, `error`: what is mediated by the latents and by the error of the mediator's dictionary, `mediated = acts + error`; `None`
      without a dictionary there.
    """

    total: EdgeJacobian
    direct: EdgeJacobian | None
    mediated: EdgeJacobian
    acts: EdgeJacobian | None
    error: EdgeJacobian | None


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
    `saes` there, its latents and its error mediate apart. - the rest as `jc.edge`.

    **Returns:** `MediatedEdges`. **Raises:** `ValueError` as `jc.edge`, among others if nothing passes the mediator.

    >>> site = jc.Site.parse("blocks.1.hook_mlp_out")
    >>> parts = jc.mediated_edges(model, saes, tokens, "blocks.1.hook_resid_pre", site, "blocks.1.hook_resid_post")
    >>> v = jnp.ones(parts.total.source_shape)
    >>> bool(jnp.allclose(parts.acts.mv(v) + parts.error.mv(v) + parts.direct.mv(v), parts.total.mv(v), atol=1e-3))
    True

    **Reference:** Marks et al. 2024, arXiv 2403.19647, appendix A.1. In its implementation what an error node mediates is 0.
    """
    saes, held = by_site(saes), frozenset(map(Site.parse, frozen))
    source, mediator, target = (Site.parse(site) for site in (source, mediator, target))
    between = lambda start, end, held=held: edge(
        model, tokens, start, end, frozen=held, saes=saes, mask=mask, engine=engine
    )
    through = lambda site: between(site, target) @ between(source, site)
    apart = mediator in saes
    has_direct = reaches(model, source, target, held | {mediator}, saes)
    return MediatedEdges(
        total=between(source, target),
        direct=between(source, target, held | {mediator}) if has_direct else None,
        mediated=through(mediator),
        acts=through(mediator.acts) if apart else None,
        error=through(mediator.error) if apart else None,
    )


def _parts(site: Site, saes) -> tuple[Site, ...]:
    return (site.acts, site.error) if site in saes else (site,)


def _product(legs: list[EdgeJacobian]) -> EdgeJacobian:
    out = legs[0]
    for leg in legs[1:]:
        out = leg @ out
    return out
