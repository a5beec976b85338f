"""Architectures of transformers, one a file: what their configurations say, and how their tensors are called and laid out.

A further one is a file here and a line below.
"""

from .._keymaps import Table
from .._spec import Spec
from ._family import Family as Family
from ._gemma import GEMMA1, GEMMA2, GEMMA3
from ._gpt2 import GPT2
from ._gpt_neo import GPT_NEO
from ._gpt_neox import GPT_NEOX
from ._lens import lens_table
from ._llama import LLAMA, MISTRAL
from ._olmo2 import OLMO2
from ._qwen import QWEN2, QWEN3


FAMILIES: dict[str, Family] = {
    "gpt2": GPT2,
    "gpt_neo": GPT_NEO,
    "gpt_neox": GPT_NEOX,
    "llama": LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma": GEMMA1,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
    "olmo2": OLMO2,
}


def table_of(spec: Spec) -> Table:
    """The key table of a model."""
    return lens_table(spec) if spec.architecture == "transformer_lens" else FAMILIES[spec.architecture].table
