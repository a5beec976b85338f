"""Attribution graphs: which latents, tokens and errors of one prompt contribute how much to which others, and to its logits."""

from ._graph import AttributionGraph as AttributionGraph
from ._verb import attribution_graph as attribution_graph
