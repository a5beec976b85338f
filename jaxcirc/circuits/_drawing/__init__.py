"""A circuit as a page, a picture, and for the viewers of others."""

from ._attribution_graph import attribution_graph as attribution_graph
from ._described import described as described
from ._graphviz import graphviz_of as graphviz_of
from ._networkx import networkx_of as networkx_of, write_graphml as write_graphml
