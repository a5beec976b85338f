"""What is in a figure: panels, their cells, and everything that is written."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.text import Text


def panels(figure: Figure) -> list[Axes]:
    """The panels, without the bars of colours."""
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def bars(figure: Figure) -> list[Axes]:
    """The bars of colours."""
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def mesh(axes: Axes) -> QuadMesh:
    (found,) = [each for each in axes.collections if isinstance(each, QuadMesh)]
    return found


def cells(axes: Axes) -> np.ndarray:
    """The numbers of a heat map `[row column]`, NaN where a cell is grey."""
    return np.ma.filled(mesh(axes).get_array().astype(float), np.nan)


def limits(axes: Axes) -> tuple[float, float]:
    """The numbers at both ends of the colours."""
    norm = mesh(axes).norm
    return float(norm.vmin), float(norm.vmax)


def written(figure: Figure) -> list[str]:
    """All that is written."""
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def names(axes: Axes, which: str) -> list[str]:
    """The names along an axis, `"x"` or `"y"`."""
    return [text.get_text() for text in (axes.get_xticklabels() if which == "x" else axes.get_yticklabels())]


def dots(axes: Axes) -> list[np.ndarray]:
    """The points of each set of dots `[point 2]`."""
    return [
        np.asarray(each.get_offsets())
        for each in axes.collections
        if not isinstance(each, QuadMesh) and len(each.get_offsets()) > 0 and each.get_sizes().size
    ]
