"""Jacobians between sites, as operators."""

from . import frozen as frozen
from ._certificate import Certificate as Certificate
from ._edge import edge as edge
from ._intercept import intercept as intercept
from ._mean import mean as mean
from ._mean_result import MeanJacobian as MeanJacobian
from ._operator import EdgeJacobian as EdgeJacobian, select as select
from ._paths import block_paths as block_paths, mediated_edges as mediated_edges, MediatedEdges as MediatedEdges
from ._product import Product as Product
from ._recomputed import Recomputed as Recomputed
from ._save import (
    load_jacobian as load_jacobian,
    save_jacobian as save_jacobian,
    SavedJacobian as SavedJacobian,
)
from ._spectra import Spectra as Spectra, spectra as spectra
