"""The parts of a transformer, for one sequence, with every activation tapped.

What differs between architectures is data: a norm with or without weights, the scale of the attention scores, the masks, the activation
function. So blocks of one model share one tree structure, and a function of a block compiles once for all layers. Each part widens its
weights where it reads them, so that of a model in half precision all activations are float32.
"""

from ._attention import Attention as Attention, KVCache as KVCache
from ._block import Block as Block
from ._mlp import ACTIVATIONS as ACTIVATIONS, gelu as gelu, gelu_new as gelu_new, MLP as MLP, relu as relu
from ._norm import LayerNorm as LayerNorm
