"""Edits: what may happen to the value at a site.

An edit is a pure function of the value, and a pytree: what it holds (values, masks, strengths) are arrays, so a sweep over heads or
features is a `jax.vmap` over a mask and never a new compilation. `Replace(cache[site])` and `Detach()` both hold a site without
tangent; only the first also fixes its value when something upstream changes.
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
    return jnp.broadcast_to(jnp.asarray(array, x.dtype), x.shape)


def as_pytree(fn: Callable) -> Callable:
    """`fn` as a pytree whose leaves are arrays, so that `jit` and `vmap` take it."""
    if not callable(fn):
        raise TypeError(f"Expected a function of an array, got a {type(fn).__name__}.")
    return jax.tree_util.Partial(fn) if jax.tree_util.all_leaves([fn]) else fn
