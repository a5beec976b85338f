"""The public names are those of `public_api.txt`, so that a name is added or lost on purpose.

To write the list anew: `python -m tests.test_public_api`.
"""

import dataclasses
import re
import types
from pathlib import Path
from typing import Any

import equinox as eqx

import jaxcirc


LIST = Path(__file__).with_name("public_api.txt")


NAMESPACES = (
    "attribution_graphs",
    "circuits",
    "components",
    "data",
    "features",
    "generation",
    "jacobian",
    "jobs",
    "localisation",
    "patching",
    "saes",
    "scrubbing",
    "view",
)


def public_names() -> dict[str, Any]:
    """What `import jaxcirc as jc` offers, there and in its namespaces, modules aside."""
    places = {"": jaxcirc, **{f"{name}.": getattr(jaxcirc, name) for name in NAMESPACES}}
    return {
        f"{prefix}{name}": value
        for prefix, module in places.items()
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }


def test_public_names_are_the_listed_ones():
    listed = LIST.read_text().split()
    assert listed == sorted(set(listed))
    names = public_names()
    assert sorted(set(names) - set(listed)) == [], "not listed; if they are meant, run python -m tests.test_public_api"
    assert sorted(set(listed) - set(names)) == [], "listed, and gone"


def test_public_names_say_what_they_are():
    undocumented = [name for name, value in public_names().items() if not (value.__doc__ or "").strip()]
    assert undocumented == []


def test_what_holds_arrays_is_equal_to_itself_alone():
    """A dataclass compares its fields, and of two arrays it cannot be said in one word whether they are equal, nor have they a hash."""
    held = {
        name: [
            field.name
            for field in dataclasses.fields(value)
            if re.search("rray|DataFrame|Effects|Table", str(field.type))
        ]
        for name, value in public_names().items()
        if isinstance(value, type) and dataclasses.is_dataclass(value) and not issubclass(value, eqx.Module)
    }
    holding = {name for name, fields in held.items() if fields} - {
        "scrubbing.Fixed"
    }  # which makes plain numbers of an array
    assert {"Circuit", "Evaluation", "EdgeEffects", "AttributionGraph"} <= holding
    assert [name for name in sorted(holding) if public_names()[name].__eq__ is not object.__eq__] == []


if __name__ == "__main__":
    LIST.write_text("\n".join(sorted(public_names())) + "\n")
