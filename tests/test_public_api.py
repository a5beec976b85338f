"""The public names are those of `public_api.txt`, so that a name is added or lost on purpose.

To write the list anew: `python -m tests.test_public_api`.
"""

import types
from pathlib import Path

import jaxcirc


LIST = Path(__file__).with_name("public_api.txt")


def public_names() -> list[str]:
    """What `import jaxcirc as jc` offers, modules aside."""
    return [
        name
        for name in dir(jaxcirc)
        if not name.startswith("_") and not isinstance(getattr(jaxcirc, name), types.ModuleType)
    ]


def test_public_names_are_the_listed_ones():
    listed = LIST.read_text().split()
    assert listed == sorted(set(listed))
    names = public_names()
    assert sorted(set(names) - set(listed)) == [], "not listed; if they are meant, run python -m tests.test_public_api"
    assert sorted(set(listed) - set(names)) == [], "listed, and gone"


def test_public_names_say_what_they_are():
    undocumented = [name for name in public_names() if not (getattr(jaxcirc, name).__doc__ or "").strip()]
    assert undocumented == []


if __name__ == "__main__":
    LIST.write_text("\n".join(sorted(public_names())) + "\n")
