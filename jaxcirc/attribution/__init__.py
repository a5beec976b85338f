"""Effects of nodes and edges on a metric."""

from ._atp_star import AtPStar as AtPStar
from ._contract import iterate_edges as iterate_edges
from ._direct import direct_to_metric as direct_to_metric
from ._edges import edge_effects as edge_effects, EdgeEffects as EdgeEffects
from ._effects import NodeEffects as NodeEffects
from ._head_effects import (
    affordable_method as affordable_method,
    head_effects as head_effects,
    patching_runs as patching_runs,
)
from ._heads import (
    AbstractHeadMethod as AbstractHeadMethod,
    check_head_method as check_head_method,
    HeadEffects as HeadEffects,
)
from ._methods import (
    AbstractMethod as AbstractMethod,
    check_method as check_method,
    Gradient as Gradient,
    IntegratedGradients as IntegratedGradients,
)
from ._nodes import node_effects as node_effects
from ._origin import fingerprints as fingerprints
from ._packs import NodeMask as NodeMask, nodes_among as nodes_among
from ._patching import ExactPatching as ExactPatching
from ._states import Lists as Lists, States as States, states as states
