"""`spectra`: singular values and vectors of Jacobians layer by layer, from products with them alone."""

import functools as ft
import itertools
from collections.abc import Iterable, Sequence

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._checks import check_count, check_list
from .._shown import Shown
from .._sites import Kind, Site
from .._typing import Keys, Tokens
from ..graph import canonical
from ..models import Transformer
from ._edge import edge


class Spectra(Shown, eqx.Module):
    """The leading singular triples of several Jacobians, largest first: $J v_k = s_k u_k$.

    **Attributes:**

    - `edges`: source and target of each.
    - `values` `[edge rank]`: the singular values $s$.
    - `left` `[edge rank *target]`: unit vectors $u$ of the target; `right` `[edge rank *source]`: unit vectors $v$ of the source. The sign
      of a pair of them is nobody's choice: $-u$ and $-v$ are as good.
    """

    edges: tuple[tuple[Site, Site], ...] = eqx.field(static=True)
    values: Float[Array, "edge rank"]
    left: Float[Array, "edge rank ..."]
    right: Float[Array, "edge rank ..."]


def spectra(
    model: Transformer,
    tokens: Tokens,
    source: Site | str | Sequence[Site | str],
    targets: Sequence[Site | str],
    *,
    rank: int = 8,
    frozen: Iterable[Site | str] = (),
    source_pos: Sequence[int] | Int[Array, " n"] | None = None,
    target_pos: Sequence[int] | Int[Array, " n"] | None = None,
    mask: Keys | None = None,
    key: Array | None = None,
    oversample: int = 8,
    iterations: int = 4,
) -> Spectra:
    """The leading singular values and vectors of the Jacobians from one site to sites of several layers, or of each layer's own.

    None of them is made: they are products of the blocks' Jacobians, which run one compiled program where blocks are alike, however many
    there are.

    **Arguments:**

    - `source`: one site, or one for each target.
    - `targets`: sites whose values have one shape, such as `hook_resid_post` of each layer.
    - `rank`: how many singular values. - `frozen`, `mask`: as of `jc.edge`; `jc.frozen.detached(model)` for detached Jacobians.
    - `source_pos`, `target_pos`: restrict them to some positions.
    - `key`, `oversample`, `iterations`: as of `J.svd`.

    **Returns:** `Spectra`; `jc.decode` reads its left vectors in tokens.

    **Raises:** `ValueError` for no targets, for other than one source or one a target, for values of several shapes, and as `jc.edge`.

    >>> layers = [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]
    >>> found = jc.jacobian.spectra(model, tokens, "hook_embed", layers, rank=3, frozen=jc.frozen.detached(model), target_pos=[-1])
    >>> found.values.shape, found.left.shape
    ((4, 3), (4, 3, 1, 128))

    **Reference:** Golden 2025, "Equivalent Linear Mappings of Large Language Models", arXiv 2505.24293, makes the matrices, for each
    position of the source apart; with `source_pos` so does this.
    """
    check_count("spectra: rank", "singular values to find", rank)
    ends = _ends(source, targets)
    held = check_list("spectra: frozen", "sites", frozen)
    legs = ft.cache(lambda start, end: edge(model, tokens, start, end, frozen=held, mask=mask))
    operators = [
        ft.reduce(lambda J, leg: leg @ J, (legs(*leg) for leg in _legs(model, *each))).restricted(
            source_pos=source_pos, target_pos=target_pos
        )
        for each in ends
    ]
    for what, shapes in (
        ("sources", {J.source_shape for J in operators}),
        ("targets", {J.target_shape for J in operators}),
    ):
        if len(shapes) > 1:
            raise ValueError(
                f"spectra: the values at the {what} have shapes {sorted(shapes)}. Ask for those of one shape in one call."
            )
    found = [J.svd(rank, key, oversample=oversample, iterations=iterations) for J in operators]
    left, values, right = (jnp.stack(each) for each in zip(*found, strict=True))
    return Spectra(tuple(ends), values, jnp.moveaxis(left, -1, 1), right)


def _ends(source: Site | str | Sequence[Site | str], targets: Sequence[Site | str]) -> list[tuple[Site, Site]]:
    """Pairs each target with its source."""
    last = [Site.parse(site) for site in check_list("spectra: targets", "sites", targets)]
    if not last:
        raise ValueError("spectra: no targets. Give a site for each layer, such as its hook_resid_post.")
    if isinstance(source, str | Site):
        return [(Site.parse(source), target) for target in last]
    first = [Site.parse(site) for site in check_list("spectra: source", "sites", source)]
    if len(first) != len(last):
        raise ValueError(f"spectra: give one source, or one for each target: got {len(first)} for {len(last)}.")
    return list(zip(first, last, strict=True))


def _legs(model: Transformer, source: Site, target: Site) -> list[tuple[Site, Site]]:
    """Cuts the way from one site to another where blocks meet; what comes behind the last block stays with it."""
    first, last = source.layer or 0, model.n_layers - 1 if target.layer is None else target.layer
    cuts = [Site(layer, Kind.RESID_PRE) for layer in range(first + 1, last + 1)]
    inner = [cut for cut in cuts if cut < target and cut not in (canonical(source), canonical(target))]
    return list(itertools.pairwise([source, *inner, target]))
