"""Norms of a Jacobian's blocks, drawn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from .._checks import check_choice, check_kind, check_list
from .._figures import heat_map, new_figure, panel_size, saved, sizes, token_names, written
from .._words import counted
from ..jacobian import EdgeJacobian, SavedJacobian


if TYPE_CHECKING:
    from matplotlib.figure import Figure

NORMS = {"frobenius": "Frobenius norm", "spectral": "largest singular value"}


def draw_jacobian_norms(
    jacobian: EdgeJacobian | SavedJacobian | Sequence[EdgeJacobian | SavedJacobian],
    path: str | Path | None = None,
    *,
    norm: str = "frobenius",
    tokens: Sequence[str] | None = None,
) -> "Figure":
    r"""Draws how much each position of the target depends on each of the source: the norms $\lVert J_{ts} \rVert$ of the blocks of a
    Jacobian, `[target_seq source_seq]`, as a heat map from 0 on.

    **Arguments:**

    - `jacobian`: of `jc.edge`, or `jc.load_jacobian`; or several of one edge, of prompts of one length, whose norms are averaged. A
      Jacobian that is not saved is made a position of the target at a time.
    - `path`: also writes the figure, by its suffix `.svg`, `.pdf` or `.png`.
    - `norm`: `"frobenius"`, of all entries, or `"spectral"`, the largest singular value.
    - `tokens`: the text at each position of the prompt.

    **Returns:** a matplotlib figure, which is part of no global state.

    **Raises:** `ValueError` for none, several of other sites or shapes, values that have not one position each, another number of tokens,
    and another suffix.

    >>> J = jc.edge(model, tokens, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")
    >>> figure = jc.draw_jacobian_norms(J, "norms.svg", tokens=[tokenizer.decode(int(token)) for token in tokens])
    >>> figure.axes[0].get_ylabel()
    'position of the target'
    """
    target = written("draw_jacobian_norms", path)
    who = "draw_jacobian_norms"
    single = isinstance(jacobian, EdgeJacobian | SavedJacobian)
    several: list[Any] = [jacobian] if single else check_list(f"{who}: jacobian", "Jacobians", jacobian)
    check_choice(f"{who}: norm", norm, tuple(NORMS))
    _check(who, several)
    first = several[0]
    places = [
        _positions(pos, size) for pos, size in zip((first.target_pos, first.source_pos), _lengths(first), strict=True)
    ]
    names = _names(who, first, tokens, places)
    norms = np.mean([_norms(each, norm) for each in several], axis=0)
    title = f"Jacobian of {first.target} by {first.source}: {NORMS[norm]} of its blocks; "
    title += counted(1, "prompt") if single else f"mean of {counted(len(several), 'prompt')}"
    figure, [axes] = new_figure(1, panel_size(norms.shape, *names), title=title)
    heat_map(
        axes,
        norms,
        sizes("norm, target's unit per source's"),
        side="position of the target",
        label="position of the source",
        rows=names[0],
        columns=names[1],
    )
    return saved(figure, target)


def _check(who: str, several: list[Any]) -> None:
    """ValueError unless these are Jacobians of one edge between values with a position each."""
    if not several:
        raise ValueError(f"{who}: jacobian: expected at least one, got none.")
    for each in several:
        check_kind(
            f"{who}: jacobian",
            each,
            (EdgeJacobian, SavedJacobian),
            "an operator, as jc.edge gives one, or what jc.load_jacobian gives",
        )
        if isinstance(each, EdgeJacobian) and (each.product.transposed or not each.product.has_single_positions):
            raise ValueError(
                f"{who}: expected an edge between values that have one position each, not transposed; got {each!r}."
            )
        if isinstance(each, SavedJacobian) and each.matrix.ndim != 4:
            raise ValueError(
                f"{who}: of a saved Jacobian expected [target_seq d_target source_seq d_source], got {list(each.matrix.shape)}. Give the "
                "operator, as jc.edge gives it."
            )
    about = {
        (each.source, each.target, *_lengths(each), str(each.source_pos), str(each.target_pos)) for each in several
    }
    if len(about) > 1:
        raise ValueError(
            f"{who}: a mean is of one edge, at the same positions of prompts of one length; got {len(about)} kinds."
        )


def _lengths(J: Any) -> tuple[int, int]:
    """How many positions the target and the source have."""
    if isinstance(J, EdgeJacobian):
        return J.target_shape[0], J.source_shape[0]
    return J.matrix.shape[0], J.matrix.shape[2]


def _positions(pos: Any, size: int) -> list[int]:
    return list(range(size)) if pos is None else [int(each) for each in np.asarray(pos)]


def _names(who: str, J: Any, tokens: Sequence[str] | None, places: list[list[int]]) -> list[list[str]]:
    """Names the positions of both ends, by the prompt's tokens if they are given."""
    if tokens is None:
        return [[str(at) for at in each] for each in places]
    listed = check_list(f"{who}: tokens", "texts", tokens)
    # A saved Jacobian of some positions does not say how long its prompt was.
    seq = J.product.seq if isinstance(J, EdgeJacobian) else max(len(listed), 1 + max(map(max, places)))
    if len(listed) != seq:
        raise ValueError(f"{who}: tokens are the text at each of {seq} positions, got {len(listed)}.")
    shown = token_names(listed)
    return [[shown[at] for at in each] for each in places]


def _norms(J: Any, norm: str) -> Float[np.ndarray, "target_seq source_seq"]:
    """The norms of all blocks, a position of the target at a time."""
    count, _ = _lengths(J)
    rows = []
    for i, at in enumerate(_positions(J.target_pos, count)):
        if isinstance(J, EdgeJacobian):
            block, wide = np.asarray(J.restricted(target_pos=[at]).as_matrix())[0], len(J.target_shape) - 1
        else:
            block, wide = np.asarray(J.matrix[i]), 1
        flat = block.astype(np.float64).reshape(int(np.prod(block.shape[:wide])), block.shape[wide], -1)
        # [d_target source_seq d_source] -> [source_seq d_target d_source]
        rows.append(np.linalg.norm(flat.swapaxes(0, 1), ord="fro" if norm == "frobenius" else 2, axis=(1, 2)))
    return np.stack(rows)
