"""Edges between single nodes of one run: neurons, latents, heads by query, key and value, tokens, biases; each direct, by the stream."""

from ._compare import compare as compare, stability as stability
from ._into import edges_into as edges_into
from ._into_result import EdgesInto as EdgesInto
from ._many import edges_into_each as edges_into_each, strongest_edges as strongest_edges
from ._out_of import edges_out_of as edges_out_of
from ._out_result import EdgesOutOf as EdgesOutOf
from ._writes import write_norms as write_norms, WriteNorms as WriteNorms
