"""Nodes: the single values of one run that edges begin and end at."""

from ._check import check_node as check_node, is_there as is_there, Node as Node
from ._names import FORMS as FORMS, name_of as name_of, parse_node as parse_node
from ._nodes import (
    Bias as Bias,
    Direction as Direction,
    Error as Error,
    Final as Final,
    Head as Head,
    Index as Index,
    Latent as Latent,
    Neuron as Neuron,
    Position as Position,
    Token as Token,
)
