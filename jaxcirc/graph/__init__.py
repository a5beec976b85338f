"""Which sites feed which, and which nodes feed which directly."""

from ._affine import first_curved as first_curved
from ._components import component_graph as component_graph, ComponentGraph as ComponentGraph
from ._sites import graph_of as graph_of, reaches as reaches, structure_of as structure_of
from ._wiring import (
    as_output as as_output,
    back_to_site as back_to_site,
    canonical as canonical,
    check_nodes as check_nodes,
    enters as enters,
    Entry as Entry,
    entry as entry,
    is_cut as is_cut,
    reaches_output as reaches_output,
    Wire as Wire,
    wiring as wiring,
)
