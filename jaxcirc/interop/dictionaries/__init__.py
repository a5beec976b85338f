"""Sparse dictionaries from the files of other libraries, and to SAELens'."""

from ._cross_layer import load_cross_layer_transcoder as load_cross_layer_transcoder
from ._folder import check_saes as check_saes, load_saes as load_saes
from ._load import load_sae as load_sae
from ._readers import register_reader as register_reader, unregister_reader as unregister_reader
from ._saelens_export import save_sae as save_sae
from ._source import Source as Source
