"""Sparse dictionaries: `SAE`, `Transcoder`, `CrossLayerTranscoder`, `Identity`, and what they are made of."""

from ._activations import (
    AbsTopK as AbsTopK,
    AbstractActivation as AbstractActivation,
    Gated as Gated,
    GroupMax as GroupMax,
    JumpReLU as JumpReLU,
    Linear as Linear,
    ReLU as ReLU,
    TanhReLU as TanhReLU,
    TopK as TopK,
)
from ._base import AbstractDictionary as AbstractDictionary, anonymous as anonymous, Saes as Saes
from ._cross_layer import CrossLayerTranscoder as CrossLayerTranscoder
from ._decoders import AbstractDecoder as AbstractDecoder, Decoder as Decoder
from ._dictionaries import Identity as Identity, SAE as SAE, Transcoder as Transcoder
from ._normalisations import (
    AbstractNormalisation as AbstractNormalisation,
    Standardise as Standardise,
    UnitNorm as UnitNorm,
)
from ._processing import mismatch as mismatch
