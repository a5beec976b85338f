"""Layouts: in which order and grouping a file stores the axes of an array.

A layout is written in the axis words, one word an axis, parentheses around axes that are stored as one, the slowest first:
`"d_model (part head d_head)"` is GPT-2's fused query-key-value matrix. Reading and writing are the same function with the two layouts
exchanged, so a file's layout is said once, and the shapes that messages name come from the same words.
"""

import math
import re
from collections.abc import Mapping

import numpy as np


def shape(layout: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Finds the shape of an array stored in `layout`, given the length of each axis.

    >>> from jaxcirc.interop._layouts import shape
    >>> shape("d_model (part head d_head)", {"d_model": 6, "part": 3, "head": 2, "d_head": 3})
    (6, 18)
    """
    return tuple(math.prod(sizes[axis] for axis in group) for group in _groups(layout))


def rearrange(array: np.ndarray, source: str, target: str, sizes: Mapping[str, int]) -> np.ndarray:
    """`array` stored in the layout `source`, in the layout `target`: split, transpose, merge. The same axes must be in both."""
    axes = [axis for group in _groups(source) for axis in group]
    order = [axes.index(axis) for group in _groups(target) for axis in group]
    split = array.reshape([sizes[axis] for axis in axes])
    return np.ascontiguousarray(split.transpose(order)).reshape(shape(target, sizes))


def _groups(layout: str) -> list[list[str]]:
    return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", layout)]
