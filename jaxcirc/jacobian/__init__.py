"""Jacobians between sites, as operators."""

from . import frozen as frozen
from ._blocks import chain_of_blocks as chain_of_blocks, is_position_local as is_position_local
from ._certificate import (
    Certificate as Certificate,
    error_of_edges as error_of_edges,
    issue_certificate as issue_certificate,
)
from ._edge import edge as edge
from ._finite import check_finite as check_finite
from ._operator import EdgeJacobian as EdgeJacobian, select as select
from ._paths import block_paths as block_paths, mediated_edges as mediated_edges, MediatedEdges as MediatedEdges
from ._product import Product as Product
from ._save import (
    check_free as check_free,
    load_jacobian as load_jacobian,
    save_jacobian as save_jacobian,
    saved_already as saved_already,
    SavedJacobian as SavedJacobian,
)
