"""How every figure looks: one style, one way to write it, and panels of cells, of dots and of curves."""

from ._grid import (
    COLOURED_BY as COLOURED_BY,
    ENTROPY as ENTROPY,
    PROBABILITY as PROBABILITY,
    RANK as RANK,
    token_grid as token_grid,
)
from ._heat_map import heat_map as heat_map, name_columns as name_columns, panel_size as panel_size
from ._panels import dots as dots, labelled as labelled, legend as legend, log_axis as log_axis, series as series
from ._scale import Scale as Scale, shares as shares, signed as signed, sizes as sizes, small_is_dark as small_is_dark
from ._style import (
    COLOURS as COLOURS,
    GREY as GREY,
    headline as headline,
    mean_of as mean_of,
    NEGATIVE as NEGATIVE,
    new_figure as new_figure,
    POSITIVE as POSITIVE,
    saved as saved,
    SMALL as SMALL,
    written as written,
)
from ._text import shortened as shortened, shown as shown, token_names as token_names
