"""The models that travel with the package."""

from pathlib import Path


SHIPPED = ("tiny-gpt2", "tiny-gpt-neo")
_PACKAGE = Path(__file__).parents[1]


def shipped_folder(name: str) -> Path:
    """Finds the folder of a shipped model: in the installed package, or under `weights/` in a checkout.

    **Raises:** `ValueError` if no shipped model has this name.
    """
    if name not in SHIPPED:
        raise ValueError(f"No shipped model is called {name!r}; there are {', '.join(SHIPPED)}.")
    places = (_PACKAGE / "_shipped" / name, _PACKAGE.parent / "weights" / name)
    for folder in places:
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"The shipped model {name!r} is neither at {places[0]} nor at {places[1]}: this installation lacks its weights."
    )
