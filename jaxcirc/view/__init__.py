"""What a person looks at."""

from . import plot as plot
from ._attribution_graph import attribution_graph as attribution_graph
from ._curves import check_svg as check_svg, draw_curves as draw_curves
from ._features import draw_features as draw_features
from ._graphviz import graphviz_of as graphviz_of
from ._heads import draw_head_effects as draw_head_effects
from ._page import drawing as drawing, page as page
from ._rows import (
    edge_rows as edge_rows,
    EdgeRow as EdgeRow,
    METRIC as METRIC,
    node_rows as node_rows,
    NodeRow as NodeRow,
    note_of as note_of,
)
from ._self_repair import draw_self_repair as draw_self_repair
