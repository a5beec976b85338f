"""Derivatives of what is made in closed form."""

from collections.abc import Callable

import jax
from jaxtyping import Array

from .._traced import is_traced


def differentiated_as(make: Callable[..., Array], plain: Callable[..., Array]) -> Callable[..., Array]:
    """`make`, whose derivatives are those of `plain`, the same value by autodiff.

    Closed forms loop as far as positions reach, and take the examples of a batch one after another: of neither JAX has derivatives.
    """
    computed = jax.custom_jvp(make)

    def compute(*arguments):
        return (computed if is_traced(arguments) else make)(*arguments)  # the rule costs as much as it takes to begin

    @computed.defjvp
    def _(primals, tangents):
        return jax.jvp(plain, primals, tangents)

    return compute
