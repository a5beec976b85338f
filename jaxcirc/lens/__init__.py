"""The Jacobian lens: fitted, merged, read out, on disk."""

from ._fit import fit_lens as fit_lens
from ._lens import JacobianLens as JacobianLens
from ._readout import LensReadout as LensReadout
from ._settings import LensSettings as LensSettings
