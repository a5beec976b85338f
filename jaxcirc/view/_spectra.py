"""Singular values of Jacobians, drawn."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_kind
from .._figures import GREY, labelled, legend, log_axis, new_figure, saved, SMALL, written
from ..jacobian import Spectra


if TYPE_CHECKING:
    from matplotlib.figure import Figure

Values = Float[Array | np.ndarray, " rank"]
MOST_NAMED = 16


def draw_spectra(
    spectra: Spectra | Values | Mapping[str, Values],
    path: str | Path | None = None,
    *,
    title: str = "Singular values of Jacobians",
) -> "Figure":
    """Draws singular values, the largest first, on a logarithmic axis: one curve a Jacobian. Zeros have no place there, and are left out.

    **Arguments:** - `spectra`: what `jc.jacobian.spectra` gives; or the singular values `[rank]` of one Jacobian, such as
    `J.svd(8)[1]`; or of several by name. - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`. - `title`: of which
    model and prompt, for example.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for none, or what cannot be singular values; for another suffix.

    >>> J = jc.edge(model, tokens, "blocks.0.hook_resid_pre", "blocks.3.hook_resid_post")
    >>> figure = jc.draw_spectra({"four blocks": J.svd(5)[1]}, "spectrum.svg")
    """
    from matplotlib import colormaps

    target = written("draw_spectra", path)
    named = _named(spectra)
    above = np.concatenate([values[values > 0] for values in named.values()])
    if not len(above):
        raise ValueError("draw_spectra: all singular values are 0, and a logarithmic axis has no place for them.")
    rank = max(map(len, named.values()))
    several = any(named)
    figure, [axes] = new_figure(1, (8.0 if several else 5.6, 3.6), title=f"{title}{_one_source(spectra)}")
    colours = colormaps["viridis"](
        np.linspace(0, 0.85, len(named))
    )  # in the order of the edges, which is that of layers
    for colour, (name, values) in zip(colours, named.items(), strict=True):
        some = np.flatnonzero(values > 0)
        axes.plot(some + 1, values[some], color=colour, linewidth=1.3, marker="o", markersize=3, label=name or None)
    log_axis(axes, "y", float(above.min()), float(above.max()))
    axes.axhline(1.0, color=GREY, linewidth=0.8, linestyle=":")
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0.5, rank + 0.5)
    zeros = sum(int((values == 0).sum()) for values in named.values())
    note = f"{zeros} that are 0 are left out" if zeros else ""
    labelled(axes, label="number of the singular value", side="singular value,\ntarget's unit per source's", note=note)
    if several and len(named) <= MOST_NAMED:
        legend(axes, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    elif several:
        first, *_, last = named
        axes.text(
            1.02,
            0.9,
            f"dark: {first}\nlight: {last}",
            transform=axes.transAxes,
            fontsize=SMALL,
            va="top",
            parse_math=False,
        )
    return saved(figure, target)


def _one_source(given: Any) -> str:
    """What a title says of the source that all Jacobians have, if they have one."""
    sources = {str(source) for source, _ in given.edges} if isinstance(given, Spectra) else set()
    return f" of these sites by {sources.pop()}" if len(sources) == 1 else ""


def _named(given: Any) -> dict[str, Float[np.ndarray, " rank"]]:
    """Singular values by the names of their curves."""
    who = "draw_spectra: spectra"
    check_kind(
        who, given, (Spectra, Mapping, jax.Array, np.ndarray), "what jc.jacobian.spectra gives, or singular values"
    )
    if isinstance(given, Spectra):
        of = (
            (lambda source, target: str(target))
            if _one_source(given)
            else (lambda source, target: f"{source} → {target}")
        )
        named = {of(*ends): row for ends, row in zip(given.edges, given.values, strict=True)}
    else:
        named = dict(given) if isinstance(given, Mapping) else {"": given}
    arrays = {str(name): np.asarray(values) for name, values in named.items()}
    if not arrays:
        raise ValueError(f"{who}: expected the singular values of at least one Jacobian, got none.")
    for name, values in arrays.items():
        if (
            values.ndim != 1
            or not values.size
            or not bool((values.astype(np.float64) >= 0).all() and np.isfinite(values.astype(np.float64)).all())
        ):
            of = f" of {name!r}" if name else ""
            raise ValueError(
                f"{who}: expected singular values [rank]{of}, finite and none below 0, got an array {list(values.shape)}. Give the second "
                "of what J.svd(rank) gives."
            )
    return {name: values.astype(np.float64) for name, values in arrays.items()}
