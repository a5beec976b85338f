"""Labels: what is said of a model or a dictionary, such as what it was loaded from, and is no part of what it computes.

A label is static, and so part of the structure of the tree by which `jit` knows its programs: of two models that differ in their name
alone each would be compiled for itself. Labels are therefore kept in a wrapper that is equal to every other. What is handed out is the
plain value. What a compiled function returns has the labels of the arguments that it was traced with.
"""

from typing import Any


class _Kept:
    """A label as the tree holds it: equal to any other."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Kept)

    def __hash__(self) -> int:
        return hash(_Kept)

    def __repr__(self) -> str:
        return repr(self.value)


class _Label:
    """Wraps a field where it is set, and unwraps it where it is read; trees are flattened to what lies between."""

    def __init__(self, name: str):
        self.name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        if self.name not in instance.__dict__:
            raise AttributeError(f"{type(instance).__name__} has no {self.name} yet.")
        return instance.__dict__[self.name].value

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self.name] = value if isinstance(value, _Kept) else _Kept(value)


def with_labels(*names: str):
    """A decorator of an `eqx.Module` by which trees that differ in these static fields alone have one structure."""

    def decorate(cls):
        for name in names:
            type.__setattr__(cls, name, _Label(name))
        return cls

    return decorate
