"""Attribution graphs: which latents, tokens and errors of one prompt contribute how much to which others, and to its logits."""

from ._changes import Change as Change
from ._check_graph import check_graph as check_graph
from ._explain import EdgeExplanation as EdgeExplanation, explain_edge as explain_edge, HeadOnEdge as HeadOnEdge
from ._graph import AttributionGraph as AttributionGraph
from ._head_loadings import head_loadings as head_loadings, HeadLoadings as HeadLoadings
from ._intervene import intervene as intervene, Intervention as Intervention
from ._qk import qk_attribution as qk_attribution, QKAttribution as QKAttribution
from ._verb import attribution_graph as attribution_graph
