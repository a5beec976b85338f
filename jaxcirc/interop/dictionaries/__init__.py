"""Sparse dictionaries from the files of other libraries, and to SAELens'."""

from ._folder import check_saes as check_saes, load_saes as load_saes
from ._load import load_sae as load_sae
from ._saelens_export import save_sae as save_sae
