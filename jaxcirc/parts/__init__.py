"""The parts of a transformer, for one sequence, with every activation tapped.

What differs between architectures is data: a norm with or without weights, the scale of the attention scores, the masks, the angles of
rotary positions, the activation function. So blocks of one model share one tree structure, and a function of a block compiles once for all
layers. Each part widens its weights where it reads them, so that of a model in half precision all activations are float32.
"""

from ._attention import Attention as Attention, KVCache as KVCache
from ._block import Block as Block
from ._gate import gate_of as gate_of
from ._mlp import (
    ACTIVATIONS as ACTIVATIONS,
    GatedMLP as GatedMLP,
    gelu as gelu,
    gelu_new as gelu_new,
    MLP as MLP,
    relu as relu,
    silu as silu,
)
from ._norm import LayerNorm as LayerNorm, Norm as Norm, RMSNorm as RMSNorm
from ._position import make_rotary as make_rotary, Rotary as Rotary
