"""Programs, looked at and not run: which ones a call runs, and with what; their loops, and how much a round of each computes."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax._src.core import jaxprs_in_params, trace_state_clean
from jax.core import Tracer


JITTED = type(jax.jit(lambda x: x))


class Call(NamedTuple):
    """A program, and shapes and dtypes in place of the arrays that it was called with."""

    program: Any
    args: tuple
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.program.__module__}.{self.program.__qualname__}".removeprefix("jaxcirc.")

    def jaxpr(self):
        return self.program.trace(*self.args, **self.kwargs).jaxpr.jaxpr


class Recorder:
    """Stands for a jitted function, and writes down each kind of call, unless it is part of another program."""

    def __init__(self, program, calls: dict):
        self.program, self.calls = program, calls

    def __call__(self, *args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs))
        if trace_state_clean() and not any(isinstance(leaf, Tracer) for leaf in leaves):
            abstract = [_abstract(leaf) for leaf in leaves]
            call = Call(self.program, *tree.unflatten(abstract))
            self.calls.setdefault((self.program, tree, tuple(map(str, abstract))), call)
        return self.program(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self.program, name)


def _abstract(leaf):
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=getattr(leaf, "weak_type", False))


@contextlib.contextmanager
def recording() -> Iterator[dict[Any, Call]]:
    """Collects the calls of all jitted functions that are attributes of the library's modules."""
    calls: dict[Any, Call] = {}
    recorders: dict[int, Recorder] = {}
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "jaxcirc"]
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITTED):
                    patch.setattr(module, name, recorders.setdefault(id(value), Recorder(value, calls)))
        yield calls


class Loop(NamedTuple):
    """A loop: how often it goes round, `None` if its numbers decide; and the floating-point operations of one round's matrix products."""

    rounds: int | None
    work: int


def loops(jaxpr) -> list[Loop]:
    """All loops of a program, but those of binary searches, which go round a few times for however long a list."""
    found = []
    for equation in jaxpr.eqns:
        if "searchsorted" in str(equation.params.get("name")):
            continue
        if equation.primitive.name in ("scan", "while"):
            found.append(Loop(equation.params.get("length"), max(map(work, jaxprs_in_params(equation.params)))))
        found += [loop for inner in jaxprs_in_params(equation.params) for loop in loops(inner)]
    return found


def work(jaxpr) -> int:
    """The operations of a program's matrix products; a loop whose numbers decide how often it goes round counts as one round."""
    total = 0
    for equation in jaxpr.eqns:
        rounds = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += rounds * sum(map(work, jaxprs_in_params(equation.params)))
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            total += 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in summed)
    return total


def primitives(jaxpr) -> set[str]:
    """The names of all operations of a program."""
    names = {equation.primitive.name for equation in jaxpr.eqns}
    return names.union(*(primitives(inner) for equation in jaxpr.eqns for inner in jaxprs_in_params(equation.params)))
