"""What is traced: arrays whose values are not known, under `jit` and `vmap` and for derivatives."""

import contextlib
from typing import Any

import jax
from jax.core import Tracer


def is_traced(*trees: Any) -> bool:
    """Whether any array of these trees is."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def check_untraced(verb: str, *trees: Any) -> None:
    """ValueError where any is, for verbs that look at values on the host: to choose what they run, or to give back what is there."""
    if is_traced(*trees):
        raise ValueError(
            f"{verb}: its values are looked at on the host, so that it cannot be traced by jax.jit, jax.vmap or jax.grad. Call it outside "
            "of them; what it runs is compiled."
        )


def kept_known(*trees: Any) -> contextlib.AbstractContextManager:
    """Within it, what is made of these arrays is known if they are, though a model beside them is traced."""
    return contextlib.nullcontext() if is_traced(*trees) else jax.ensure_compile_time_eval()
