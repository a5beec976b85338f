"""Attribution graphs: which latents, tokens and errors of one prompt contribute how much to which others, and to its logits."""

from ._changes import Change as Change
from ._generate import generate as generate, Generation as Generation
from ._graph import AttributionGraph as AttributionGraph
from ._head_loadings import head_loadings as head_loadings, HeadLoadings as HeadLoadings
from ._intervene import intervene as intervene, Intervention as Intervention
from ._qk import qk_attribution as qk_attribution, QKAttribution as QKAttribution
from ._verb import attribution_graph as attribution_graph
