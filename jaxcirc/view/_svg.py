"""Where pictures may be written."""

from pathlib import Path

from .._checks import check_path


def check_svg(path: str | Path) -> None:
    """ValueError unless the file is named as what it will be, and its folder is there."""
    path = check_path("path", path)
    if path.suffix != ".svg":
        raise ValueError(f"Pictures are written as SVG, and {path} does not end in .svg. Name it so.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} for {path.name}. Make it first.")
