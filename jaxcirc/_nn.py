"""`jaxcirc.parts`, under the name by which code of before imports it."""

from .parts import (
    ACTIVATIONS as ACTIVATIONS,
    Attention as Attention,
    Block as Block,
    gelu as gelu,
    gelu_new as gelu_new,
    LayerNorm as LayerNorm,
    MLP as MLP,
    relu as relu,
)
