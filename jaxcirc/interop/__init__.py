"""Models, dictionaries and tokenizers from files and from other libraries, and back."""

from ._flax import as_nnx as as_nnx, from_nnx_state as from_nnx_state, to_flax_params as to_flax_params
from ._pretrained import (
    check_pretrained as check_pretrained,
    from_pretrained as from_pretrained,
    from_torch as from_torch,
)
from ._save import save_pretrained as save_pretrained, to_torch_state_dict as to_torch_state_dict
from ._shipped import shipped_folder as shipped_folder
from ._tokenizer import load_tokenizer as load_tokenizer
from ._transformer_lens import from_transformer_lens as from_transformer_lens
from .dictionaries import (
    check_saes as check_saes,
    load_cross_layer_transcoder as load_cross_layer_transcoder,
    load_sae as load_sae,
    load_saes as load_saes,
    register_reader as register_reader,
    save_sae as save_sae,
    Source as Source,
    unregister_reader as unregister_reader,
)
