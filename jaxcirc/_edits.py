"""Edits: what may happen to the value at a site.

An edit is a pure function of the value, and a pytree: what it holds (values, masks, strengths) are arrays, so a sweep over heads or
features is a `jax.vmap` over a mask and never a new compilation. `Replace(cache[site])` and `Detach()` both hold a site without
tangent; only the first also fixes its value when something upstream changes.
"""

import abc
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ._indexing import counted_from_end, is_whole


class AbstractEdit(eqx.Module):
    """A function from the value at a site to the value that everything downstream sees."""

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """**Arguments:** - `x`: the value as computed. **Returns:** an array of the same shape."""


class Replace(AbstractEdit):
    """Puts `value` in place of what was computed."""

    value: Float[Array, "..."] = eqx.field(converter=jnp.asarray)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return _like(x, self.value, "Replace's value")


class Add(AbstractEdit):
    """Adds `value`, of the site's shape or broadcasting to it: steering."""

    value: Float[Array, "..."] = eqx.field(converter=jnp.asarray)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x + _like(x, self.value, "Add's value")


class Scale(AbstractEdit):
    """Multiplies by `factor`, of the site's shape or broadcasting to it."""

    factor: Float[Array, "..."] = eqx.field(converter=jnp.asarray)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x * _like(x, self.factor, "Scale's factor")


class Blend(AbstractEdit):
    """`(1 - mask) x + mask value`; `mask` is boolean or a strength and broadcasts to the site's shape.

    The derivative with respect to `mask` at 0 is the attribution-patching score. Where the value or its replacement is infinite
    (masked attention scores), there is no blend: the replacement is taken where `mask >= 1`, else the value stays.
    """

    mask: Array = eqx.field(converter=jnp.asarray)
    value: Float[Array, "..."] = eqx.field(converter=jnp.asarray)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        mask, value = _like(x, self.mask, "Blend's mask"), _like(x, self.value, "Blend's value")
        finite = jnp.isfinite(x) & jnp.isfinite(value)
        # Selected before it is multiplied too: the gradient of inf * 0 would be NaN.
        mixed = (1 - mask) * jnp.where(finite, x, 0) + mask * jnp.where(finite, value, 0)
        return jnp.where(finite, mixed, jnp.where(mask >= 1, value, x))


class Detach(AbstractEdit):
    """The same value with no tangent: derivatives do not pass (`jax.lax.stop_gradient`)."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.lax.stop_gradient(x)


class Apply(AbstractEdit):
    """Applies a function of the value. A plain function is part of the compiled program (a new one compiles anew); a pytree with a
    `__call__`, an `eqx.Module` or a `jax.tree_util.Partial`, keeps its arrays as arguments.
    """

    fn: Callable[[Array], Array]

    def __init__(self, fn: Callable[[Array], Array]):
        self.fn = as_pytree(fn)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.fn(x)


NEW, PROMPT = "new", "prompt"


class At(AbstractEdit):
    """Does what another edit does at some positions, and nothing at the others. At attention scores and patterns they are of queries.

    **Arguments:**

    - `pos`: a position; several, as a list; a slice, `slice(5, None)` for 5 and all later ones; or, for `jc.generate` alone, `"new"` for
      the tokens behind the prompt and `"prompt"` for those of the prompt. Negative ones count back from the end of the prompt, also where
      more tokens come behind it: `slice(-1, None)` is the prompt's last token and all that follow.
    - `edit`: such as `jc.Add(direction)`. A value with an axis of positions has a row for each position of the whole, not only for those
      where it acts.

    **Raises:** `TypeError` for what are no positions or no edit, `ValueError` for a step that is not above 0. Where it is run, a position
    outside the prompt is a `ValueError`; a slice may be empty there.

    >>> edits = {"blocks.1.hook_mlp_out": jc.At(slice(2, None), jc.Scale(0.0))}
    >>> jc.run(model, tokens, edits=edits)[0].shape[0]
    6
    """

    where: tuple[Any, ...] = eqx.field(
        static=True
    )  # as a tuple: before Python 3.12 a slice has no hash, which `jit` takes
    edit: AbstractEdit

    def __init__(self, pos: int | slice | Sequence[int] | str, edit: AbstractEdit):
        if isinstance(edit, At) or not isinstance(edit, AbstractEdit):
            raise TypeError(f"At: expected an edit, got a {type(edit).__name__}. Give one such as jc.Add(value).")
        self.where, self.edit = _where(pos), edit

    @property
    def pos(self) -> "slice | list[int] | str":
        """The positions, as they were given; of one alone a list of it."""
        kind, *numbers = self.where
        return slice(*numbers) if kind == "slice" else numbers if kind == "list" else kind

    def positions(self, prompt: int, total: int) -> Bool[np.ndarray, " total"]:
        """Where it acts among `total` positions, of which the first are a `prompt`'s.

        **Raises:** `ValueError` for a position that is not there.
        """
        there, pos = np.zeros(total, bool), self.pos
        if isinstance(pos, str):
            pos = slice(prompt, None) if pos == NEW else slice(0, prompt)
        if isinstance(pos, slice):
            there[counted_from_end(pos, prompt)] = True
            return there
        for each in pos:
            if not -prompt <= each < total:
                raise EditShapeError(f"At's position {each} is outside: there are 0 to {total - 1}.")
            there[counted_from_end(each, prompt)] = True
        return there

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.along(x, 0)

    def along(self, x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
        """The value, edited where positions along this axis are among those that were chosen."""
        if self.pos == NEW:
            raise EditShapeError("At acts at the new tokens alone, and in a run of a prompt none is new.")
        length = x.shape[axis]
        return only_where(jnp.asarray(self.positions(length, length)), self.edit, x, axis)


def only_where(
    there: Bool[Array, " seq"], edit: AbstractEdit, x: Float[Array, "..."], axis: int
) -> Float[Array, "..."]:
    """`x` with an edit at the positions along an axis that are `there`."""
    edited = jnp.asarray(edit(x), x.dtype)  # a function of the user's own may hand back half precision
    if edited.shape != x.shape:
        return edited  # which whoever called refuses
    return jnp.where(there.reshape(-1, *(1,) * (x.ndim - axis - 1)), edited, x)


def _where(pos: Any) -> tuple[Any, ...]:
    """Positions as a tuple: their kind, and the numbers."""
    expected = "expected a position, a list of them, a slice of whole numbers, 'new' or 'prompt'"
    if isinstance(pos, str):
        if pos not in (NEW, PROMPT):
            raise TypeError(f"At: {expected}; got {pos!r}.")
        return (pos,)
    if isinstance(pos, slice):
        ends = (pos.start, pos.stop, pos.step)
        if not all(end is None or is_whole(end) for end in ends):
            raise TypeError(f"At: {expected}; got {pos!r}.")
        if pos.step is not None and pos.step < 1:
            raise ValueError(f"At: the step of a slice is at least 1; got {pos!r}.")
        return ("slice", *(None if end is None else int(end) for end in ends))
    listed = [pos] if is_whole(pos) else list(pos) if isinstance(pos, Sequence | np.ndarray) else []
    if not listed or not all(map(is_whole, listed)):
        raise TypeError(f"At: {expected}; got {pos!r}.")
    return ("list", *map(int, listed))


class EditShapeError(ValueError):
    """What an edit holds does not fit the value it was given. The tap, which knows the site, adds its name."""


def _like(x: Array, array: Array, name: str) -> Array:
    """`array` in the shape and dtype of `x`."""
    shape = jnp.shape(array)
    fits = len(shape) <= x.ndim and all(n in (1, m) for n, m in zip(reversed(shape), reversed(x.shape), strict=False))
    if not fits:
        raise EditShapeError(
            f"{name} has shape {shape}; give it an array of shape {x.shape}, or one that broadcasts to it."
        )
    if jnp.iscomplexobj(array):
        raise EditShapeError(f"{name} is of complex numbers, and a site's are real. Give its real part.")
    return jnp.broadcast_to(jnp.asarray(array, x.dtype), x.shape)


def _takes_one(fn: Callable) -> bool:
    try:
        signature = inspect.signature(fn)
    except ValueError:  # of what is not written in Python it is not known
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def as_pytree(fn: Callable) -> Callable:
    """`fn` as a pytree whose leaves are arrays, so that `jit` and `vmap` take it."""
    if not callable(fn):
        raise TypeError(f"Expected a function of an array, got a {type(fn).__name__}.")
    if not _takes_one(fn):
        raise TypeError(
            f"Expected a function of one array, got {getattr(fn, '__name__', type(fn).__name__)}{inspect.signature(fn)}. A hook of another "
            "library, which takes the value and the hook, is here a function of the value alone, which has no axis of a batch."
        )
    return jax.tree_util.Partial(fn) if jax.tree_util.all_leaves([fn]) else fn
