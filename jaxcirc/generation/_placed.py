"""Edits of a text that grows: checked before any work, and cut to the positions that a step runs."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._checks import check_kind
from .._edits import AbstractEdit, Add, At, Blend, only_where, Replace, Scale
from .._run import check_dictionaries, NOTHING
from .._sites import by_site, Kind, Site
from .._tap import Everything, position_axis, Tap
from ..models import Transformer
from ..saes import AbstractDictionary, Saes


VALUES = (Replace, Add, Scale, Blend)  # edits that hold values of the site's shape


class Placed(AbstractEdit):
    """An edit that acts where it is `there`, among all positions; `rows` tells which of its arrays have a row for each of them."""

    edit: AbstractEdit
    there: Bool[Array, " seq"]
    rows: tuple[bool, ...] = eqx.field(static=True)
    axis: int = eqx.field(static=True)

    def at(self, first: Int[Array, ""], count: int) -> "Placed":
        """The same for `count` positions in a row, from the `first` on."""
        part = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, first, count, axis)
        leaves, tree = jax.tree.flatten(self.edit)
        leaves = [part(leaf, self.axis) if rows else leaf for leaf, rows in zip(leaves, self.rows, strict=True)]
        return Placed(jax.tree.unflatten(tree, leaves), part(self.there, 0), self.rows, self.axis)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return only_where(self.there, self.edit, x, self.axis)


def nowhere(edits: Mapping[Site, Placed]) -> dict[Site, Placed]:
    """The same edits, acting at no position."""
    return {site: eqx.tree_at(lambda x: x.there, edit, jnp.zeros_like(edit.there)) for site, edit in edits.items()}


def placed_edits(
    verb: str,
    model: Transformer,
    saes: Saes,
    edits: Mapping[Site, AbstractEdit] | Mapping[str, AbstractEdit],
    seq: int,
    n: int,
    length: int,
) -> tuple[dict[Site, AbstractDictionary], dict[Site, Placed]]:
    """Dictionaries and edits by site, the edits as they act on `length` positions, of which the first `seq` are the prompt's and `n` new.

    **Raises:** `TypeError` for what is no edit or no dictionary, `ValueError` for a site that is not there, values of another shape, and
    positions that are not there.
    """
    given, wanted = by_site(saes), by_site(edits)
    check_dictionaries(model, given)
    for site, edit in wanted.items():
        check_kind(f"{verb}: edits: at `{site}`", edit, AbstractEdit, "an edit such as jc.Add(value)")
    if not given and not wanted:
        return {}, {}
    shapes = _shapes.eval_shape(model, given, jax.ShapeDtypeStruct((2,), jnp.int32))
    tap = Tap(given, wanted, frozenset())
    tap.seen.update(dict.fromkeys(sorted(shapes)))
    tap.check_all_used(model.name, model.n_layers, frozenset(), verb)
    place = lambda site, edit: _placed(f"{verb}: at `{site}`", site, edit, shapes[site].shape, seq, n, length, model)
    return given, {site: place(site, edit) for site, edit in wanted.items()}


@jax.jit  # never run: its trace says which sites there are, and of which shapes
def _shapes(model: Transformer, saes: dict[Site, AbstractDictionary], tokens: Int[Array, " seq"]) -> dict[Site, Array]:
    tap = Tap(saes, NOTHING, Everything())
    model(tokens, tap)
    tap.check_all_used(model.name, model.n_layers, frozenset(), "generate")
    return tap.cache


def _placed(
    name: str, site: Site, edit: AbstractEdit, shape: tuple[int, ...], seq: int, n: int, length: int, model: Transformer
) -> Placed:
    total, axis = seq + n, position_axis(site)
    there, inner = np.ones(total, bool), edit
    if isinstance(edit, At):
        try:
            there, inner = edit.positions(seq, total), edit.edit
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None
        if not there.any():
            raise ValueError(f"{name}, At acts nowhere: prompt and new tokens have positions 0 to {total - 1}.")
    there = np.pad(there, (0, length - total))
    leaves, tree = jax.tree.flatten(inner)
    if not isinstance(inner, VALUES):
        return Placed(inner, jnp.asarray(there), (False,) * len(leaves), axis)
    keys = site.kind in (Kind.ATTN_SCORES, Kind.PATTERN)
    made = [_filled(f"{name}, {type(inner).__name__}", leaf, shape, axis, keys, there, model) for leaf in leaves]
    arrays = [array for array, _ in made]
    return Placed(jax.tree.unflatten(tree, arrays), jnp.asarray(there), tuple(has_rows for _, has_rows in made), axis)


def _filled(
    name: str, value: Any, shape: tuple[int, ...], axis: int, keys: bool, there: np.ndarray, model: Transformer
) -> tuple[jax.Array, bool]:
    """What an edit holds as an array for all positions, and whether it has a row for each of them."""
    array = np.asarray(value).astype(model.activation_dtype)
    behind = array.shape[::-1][: len(shape) - axis - 1]
    # Of how many keys there are no value can know, which grow with the text.
    widths = shape[:axis:-1] if not keys else (1, *shape[:axis:-1][1:])
    fits = array.ndim <= len(shape) and all(got in (1, want) for got, want in zip(behind, widths, strict=False))
    fits = fits and (axis == 0 or array.ndim < len(shape) or array.shape[0] in (1, shape[0]))
    if not fits:
        what = ["seq", *map(str, shape[1:])] if axis == 0 else [str(shape[0]), "seq", "1"]
        more = " For single keys use jc.Apply with a function of the pattern." if keys else ""
        raise ValueError(
            f"{name} holds an array of shape {list(array.shape)}; give it one that broadcasts to [{' '.join(what)}].{more}"
        )
    if array.ndim < len(shape) or array.shape[axis] == 1:
        return jnp.asarray(array), False
    rows = array.shape[axis]
    if there[rows:].any():
        last = int(np.flatnonzero(there)[-1])
        raise ValueError(
            f"{name} has rows for {rows} positions, and acts up to position {last}. Let it act where it has "
            f"rows: jc.At(slice(0, {rows}), …)."
        )
    width = [(0, 0)] * array.ndim
    width[axis] = (0, max(0, len(there) - rows))
    cut = np.take(array, np.arange(min(rows, len(there))), axis)
    return jnp.asarray(np.pad(cut, width)), True
