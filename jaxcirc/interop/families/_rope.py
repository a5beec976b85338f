"""Rotary positions as configurations say them: `rope_parameters` since transformers 5, before it `rope_theta` and `rope_scaling`."""

from collections.abc import Mapping
from typing import Any

from .._rotation import Divided, Linear, Llama3, Rotation
from .._spec import Spec
from ._family import count, positive


ROPE = {"rope_parameters": None, "rope_scaling": None, "rope_theta": None}
_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
# Of other types: with these they do nothing.
_INDIFFERENT = {"original_max_position_embeddings", "attention_factor"}


def read_rotation(
    values: Mapping[str, Any],
    source: str,
    *,
    d_head: int,
    theta: float = 1e4,
    share: float | None = None,
    plain: str = "rope_theta",
) -> Rotation:
    """Reads how a head's coordinates rotate, in either spelling.

    **Arguments:** - `theta`: of the architecture, where nothing is said. - `share`: of an architecture in which a part of the coordinates
    rotates, that part where `rope_parameters` does not say it; `None` where all do. - `plain`: the attribute that gave theta before.

    **Raises:** `ValueError` for a kind of scaling that is not supported, and where two spellings disagree.
    """
    parameters, scaling = values["rope_parameters"], values["rope_scaling"]
    base = theta if values[plain] is None else positive(values, plain, source)
    read = lambda name, given: _read_one(name, given, values, source, d_head, base, share)
    spellings = {}
    if parameters:
        spellings["rope_parameters"] = read("rope_parameters", parameters)
        if values[plain] is not None and spellings["rope_parameters"].theta != base:
            raise ValueError(f"{source} says both rope_parameters = {parameters!r} and {plain} = {values[plain]!r}.")
    if scaling:
        spellings["rope_scaling"] = read("rope_scaling", scaling)
    if len(set(spellings.values())) > 1:
        raise ValueError(f"{source} says both rope_parameters = {parameters!r} and rope_scaling = {scaling!r}.")
    return next(iter(spellings.values()), None) or read(plain, {})


def _read_one(
    name: str, given: Any, values: Mapping[str, Any], source: str, d_head: int, theta: float, share: float | None
) -> Rotation:
    if not isinstance(given, Mapping):
        raise ValueError(f"{source}: {name} = {given!r} is not understood; expected an object with rope_type.")
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in _SCALINGS:
        raise ValueError(
            f"{source}: {name} = {dict(given)!r}: rope_type {kind!r} is not supported; {', '.join(map(repr, _SCALINGS))} are."
        )
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *_SCALINGS[kind]}
    extra = [key for key, value in given.items() if key not in known and value is not None]
    if extra := [key for key in extra if key not in _INDIFFERENT or (key == "attention_factor" and given[key] != 1)]:
        raise ValueError(
            f"{source}: {name} holds {extra[0]} = {given[extra[0]]!r}, which is not known of rope_type {kind!r}. If it changes nothing, "
            "remove it."
        )
    return Rotation(
        theta=positive({"rope_theta": theta} | dict(given), "rope_theta", source),
        width=_width(name, given.get("partial_rotary_factor"), source, d_head, share),
        scaling=_scaling(
            kind, {"original_max_position_embeddings": values["max_position_embeddings"]} | dict(given), source
        ),
    )


def _width(name: str, given: Any, source: str, d_head: int, share: float | None) -> int:
    """How many coordinates of a head rotate."""
    if share is None and given not in (None, 1):
        raise ValueError(
            f"{source}: {name} gives partial_rotary_factor = {given!r}, which is not supported; only 1 is: all coordinates rotate."
        )
    wanted = 1.0 if share is None else share if given is None else given
    if isinstance(wanted, bool) or not isinstance(wanted, float | int) or not 1 <= d_head * wanted <= d_head:
        raise ValueError(f"{source}: expected a share of a head's {d_head} coordinates to rotate; got {wanted!r}.")
    width = int(d_head * wanted)
    check_pairs(width, d_head, source)
    return width


def check_pairs(width: int, d_head: int, source: str) -> None:
    """ValueError unless the first `width` coordinates of a head rotate in pairs: of an odd number the last has the next as its other."""
    if width + width % 2 > d_head:
        raise ValueError(
            f"{source}: {width} coordinates of a head are to rotate, in pairs, which takes {width + width % 2}, and a head has {d_head}."
        )


def ramp(given: Mapping[str, Any], low: str, high: str, source: str) -> tuple[float, float]:
    """The numbers under two names, of which the second is the larger: the turns between which frequencies are scaled in part."""
    ends = positive(given, low, source), positive(given, high, source)
    if ends[1] <= ends[0]:
        raise ValueError(f"{source}: {high} = {ends[1]} must be above {low} = {ends[0]}.")
    return ends


def _scaling(kind: str, given: Mapping[str, Any], source: str) -> Linear | Llama3 | None:
    lacking = [name for name in _SCALINGS[kind] if given.get(name) is None]
    if lacking:
        raise ValueError(f"{source}: rope_type {kind!r} needs {', '.join(lacking)}.")
    if kind == "default":
        return None
    factor = positive(given, "factor", source)
    if kind == "linear":
        return Linear(factor)
    low, high = ramp(given, "low_freq_factor", "high_freq_factor", source)
    return Llama3(factor, low, high, count(given, "original_max_position_embeddings", source))


def write_rotation(spec: Spec) -> dict[str, Any]:
    """The same attributes in the older spelling, which every version of transformers reads, of the first layer's rotation."""
    first = next((rotation for rotation in spec.rotations if rotation is not None), None)
    if first is None:
        return {}
    return {"rope_theta": first.theta, "rope_scaling": write_scaling(first)}


def write_parameters(rotation: Rotation) -> dict[str, Any]:
    """What `rope_parameters`, which transformers 5 reads, has for one kind of layers."""
    return {"rope_theta": rotation.theta, **(write_scaling(rotation) or {"rope_type": "default"})}


def write_scaling(rotation: Rotation | None) -> dict[str, Any] | None:
    """The value of `rope_scaling`, which every version of transformers reads; `None` where there is none, or no name for it."""
    match None if rotation is None else rotation.scaling:
        case Linear(factor):
            return {"rope_type": "linear", "factor": factor}
        case Llama3(factor, low, high, context):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
        case Divided() | None:
            return None
