"""What a person looks at."""

from ._attribution_graph import attribution_graph as attribution_graph
from ._graphviz import graphviz_of as graphviz_of
from ._page import drawing as drawing, page as page
from ._rows import (
    edge_rows as edge_rows,
    EdgeRow as EdgeRow,
    METRIC as METRIC,
    node_rows as node_rows,
    NodeRow as NodeRow,
    note_of as note_of,
)
