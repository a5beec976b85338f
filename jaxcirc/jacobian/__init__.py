"""Jacobians between sites, as operators."""

from . import frozen as frozen
from ._certificate import Certificate as Certificate
from ._edge import edge as edge
from ._operator import EdgeJacobian as EdgeJacobian, select as select
