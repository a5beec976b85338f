"""What something is, in a few digits that are the same in every process: for results that say what they were computed from.

Arrays go in by their numbers, everything else by its names and settings: a class or a function by where it is found, never by how Python
shows it, which is with an address that is another one in every process.
"""

import dataclasses
import enum
import functools as ft
import hashlib
import inspect
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


SAMPLE = 1024


def fingerprint(tree: object) -> str:
    """Sixteen hexadecimal digits of the arrays, a hyphen, and eight of all the rest: classes, functions, sizes, switches.

    Of each array the shape counts, and up to `SAMPLE` of its entries, evenly spaced and rounded to bfloat16: so that it is quick for
    gigabytes, and the same whatever precision the arrays were loaded in. What a class lists as its `LABELS`, such as the name under
    which a model was loaded, does not count.

    **Raises:** `TypeError` for something that has no name which another process would find it by.
    """
    digest, leaves = hashlib.sha256(), _arrays(tree)
    for leaf in leaves:
        digest.update(repr(leaf.shape).encode())
        digest.update(_rounded(_sample(leaf)).tobytes())
    return f"{digest.hexdigest()[:16]}-{_rest(tree, leaves)}"


def exact_fingerprint(tree: object) -> str:
    """The same of every bit: all entries of all arrays count, and their dtypes."""
    digest, leaves = hashlib.sha256(), _arrays(tree)
    for leaf in leaves:
        for part in _exactly(leaf):
            digest.update(part)
    return f"{digest.hexdigest()}-{_rest(tree, leaves)}"


def difference(recorded: str, found: str) -> str | None:
    """In what a thing differs from the one whose fingerprint was recorded, to be put behind its name; `None` if it is the same.

    A recorded fingerprint of the arrays alone, as they once were, says nothing of the rest.
    """
    arrays = found.partition("-")[0]
    if recorded in (arrays, found):
        return None
    if recorded.partition("-")[0] != arrays:
        return ", with other weights"
    return ", with the same weights and other settings, such as an activation function, a window, k or a switch"


def _arrays(tree: object) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, (jax.Array, np.ndarray))]


def _sample(array: Any) -> np.ndarray:
    """Reads up to `SAMPLE` entries, evenly spaced, where they are: of a large array there is never a copy, nor of its parts on devices."""
    if array.size <= SAMPLE:
        return np.asarray(array)
    at = np.unravel_index(np.arange(SAMPLE) * (array.size // SAMPLE), array.shape)
    if isinstance(array, np.ndarray):
        return array[at]
    sample = np.empty(SAMPLE, array.dtype)
    for shard in array.addressable_shards:
        bounds = [slice_.indices(size)[:2] for slice_, size in zip(shard.index, array.shape, strict=True)]
        here = np.all([(first <= i) & (i < last) for i, (first, last) in zip(at, bounds, strict=True)], axis=0)
        inside = tuple(i[here] - first for i, (first, _) in zip(at, bounds, strict=True))
        on_host = shard.device.platform == "cpu"
        sample[here] = np.asarray(shard.data)[inside] if on_host else _gathered(shard.data, inside)
    return sample


@jax.jit
def _gathered(array: Any, at: tuple[Any, ...]) -> Any:
    """Reads entries of an array on a device, by one program for all arrays of a shape."""
    return array[at]


def _rounded(sample: np.ndarray) -> np.ndarray:
    """Rounds floats to bfloat16, through float32; brings other numbers into the types that JAX holds."""
    if jnp.issubdtype(sample.dtype, jnp.floating):
        with np.errstate(over="ignore"):  # what no float32 holds is infinite
            return sample.astype(np.float32).astype(jnp.bfloat16)
    return sample.astype(jax.dtypes.canonicalize_dtype(sample.dtype))


def _rest(tree: object, leaves: list[Any]) -> str:
    """All but the arrays among the leaves."""
    return hashlib.sha256(_encoded(tree, _Place(frozenset(map(id, leaves)), ()))).hexdigest()[:8]


def _exactly(array: Any) -> tuple[bytes, memoryview]:
    """Dtype and shape, and every bit, of which there is no copy if they lie in order on the host."""
    array = np.ascontiguousarray(array)
    return f"{array.dtype.name}{array.shape}".encode(), array.reshape(-1).view(np.uint8).data


class _Place(NamedTuple):
    """Where an object is: `leaves` have been counted, `inside` are the objects that hold it, outermost first, all by their `id`."""

    leaves: frozenset[int]
    inside: tuple[int, ...]


def _encoded(x: Any, place: _Place) -> bytes:
    """`x` as bytes that are the same in every process."""
    if x is None or isinstance(x, (bool, np.bool_, str, bytes)):
        return _framed(
            type(x).__name__.rstrip("_"), [x if isinstance(x, bytes) else str(x).encode("utf-8", "surrogatepass")]
        )
    if isinstance(x, enum.Enum):
        return _framed(_path(type(x)), [x.name.encode()])
    if isinstance(x, (jax.Array, np.ndarray)):
        return b"leaf" if id(x) in place.leaves else _framed("array", [b"".join(_exactly(x))])
    if isinstance(x, (int, float, complex, np.number)):  # of whatever type: 1 and 1.0 are one number
        return _framed("number", [repr(complex(x)).encode() if abs(x) < 2**53 else str(x).encode()])
    if isinstance(x, np.dtype):
        return _framed("dtype", [x.name.encode()])
    if id(x) in place.inside:  # a function that names itself, say
        return _framed("holder", [str(len(place.inside) - place.inside.index(id(x))).encode()])
    return _composite(x, place._replace(inside=(*place.inside, id(x))))


def _composite(x: Any, place: _Place) -> bytes:
    each = lambda items: [_encoded(item, place) for item in items]
    if isinstance(x, (type, types.ModuleType)):
        return _framed("name", [_path(x).encode()])
    if dataclasses.is_dataclass(x):
        return _framed(_path(type(x)), each(part for item in _counted(x, place).items() for part in item))
    if isinstance(x, Mapping):
        return _framed("mapping", sorted(_framed("pair", each(pair)) for pair in x.items()))
    if isinstance(x, (set, frozenset)):
        return _framed("set", sorted(each(x)))
    if isinstance(x, (tuple, list)):
        return _framed("sequence" if type(x) in (tuple, list) else _path(type(x)), each(x))
    if isinstance(x, ft.partial):
        return _framed("partial", each((x.func, x.args, x.keywords)))
    if isinstance(x, types.MethodType):
        return _framed("method", each((x.__func__, x.__self__)))
    if callable(x) and hasattr(x, "__name__"):
        return _function(x, place)
    try:
        reduced = x.__reduce_ex__(4)  # how pickle makes it again: by a name, and what is given to it
    except TypeError:
        raise TypeError(
            f"A {type(x).__module__}.{type(x).__qualname__} has no name by which another process would know it again. Use a function "
            "that a module defines, or a dataclass."
        ) from None
    return _framed(_path(type(x)), each([reduced] if isinstance(reduced, str) else reduced[:3]))


def _counted(x: Any, place: _Place) -> dict[str, Any]:
    """The fields that count. One at its default does not, so that a class may get another option and its objects stay what they were."""
    plain = (bool, int, float, str, type(None), tuple)
    fields = [field for field in dataclasses.fields(x) if field.name not in getattr(type(x), "LABELS", ())]
    at_default = lambda f: (
        isinstance(f.default, plain) and _encoded(getattr(x, f.name), place) == _encoded(f.default, place)
    )
    return {field.name: getattr(x, field.name) for field in fields if not at_default(field)}


def _function(function: Any, place: _Place) -> bytes:
    """A function by its name, where that finds it; one that was made in passing by its name, its code and what it holds."""
    path, plain = _path(function), inspect.unwrap(function)
    if _found(function) or not isinstance(plain, types.FunctionType):
        return _framed("function", [path.encode()])
    held = [cell.cell_contents for cell in plain.__closure__ or () if cell != types.CellType()]
    # Globals are known by their names alone.
    return _framed(
        "function", [path.encode(), _code(plain.__code__, place), _encoded((plain.__defaults__, held), place)]
    )


def _code(code: types.CodeType, place: _Place) -> bytes:
    constants = [_code(x, place) if isinstance(x, types.CodeType) else _encoded(x, place) for x in code.co_consts]
    names = (*code.co_names, *code.co_varnames, *code.co_freevars)
    return _framed("code", [code.co_code, *constants, *(name.encode() for name in names)])


def _found(function: Any) -> bool:
    """Whether a function is where its name says, in a module that every process would import."""
    module = str(getattr(function, "__module__", None))
    if module == "__main__":
        return False
    try:
        return ft.reduce(getattr, function.__qualname__.split("."), sys.modules[module]) is function
    except (AttributeError, KeyError):
        return False


def _path(x: Any) -> str:
    """The qualified name of a class, function or module, without private modules, between which it may move."""
    module = getattr(x, "__module__", None) or ""
    public = [part for part in module.split(".") if not part.startswith("_")]
    return ".".join([*public, getattr(x, "__qualname__", x.__name__)])


def _framed(kind: str, parts: Iterable[bytes]) -> bytes:
    """Parts with their lengths, so that no two lists of them make the same bytes."""
    parts = list(parts)
    return b"".join([f"{kind}:{len(parts)}".encode(), *(b"[%d]" % len(part) + part for part in parts)])
