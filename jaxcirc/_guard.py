"""Compilers that are known to compute wrong Jacobians."""

import jaxlib

from ._target import running_platform


# jaxlib version -> backends on which it is wrong. 0.10.2 hands attention's fusions to a CPU kernel library that miscomputes the
# batched transpose: off by 5 to 10 % of the largest entry from 64 tokens on (jax-ml/jax issue 39103). 0.10.1 and 0.11 are right.
WRONG = {"0.10.2": ("cpu",)}


def check_backend() -> None:
    """RuntimeError if derivatives from this jaxlib on this backend cannot be trusted."""
    version, backend = jaxlib.version.__version__, running_platform()
    if backend in WRONG.get(version, ()):
        raise RuntimeError(
            f"jaxlib {version} computes wrong Jacobians on {backend} (jax-ml/jax issue 39103), so nothing is computed with it. "
            "Either install another version, pip install 'jax!=0.10.2' 'jaxlib!=0.10.2', or run on another backend."
        )
