"""Components of a model: what each adds to a logit, what a run is without it, and what later ones do about that."""

from ._ablate import ablate as ablate, ablate_each as ablate_each
from ._ablations import (
    AbstractAblation as AbstractAblation,
    AbstractValues as AbstractValues,
    Mean as Mean,
    MeanAblation as MeanAblation,
    Resample as Resample,
    ResampleAblation as ResampleAblation,
    Zero as Zero,
    ZeroAblation as ZeroAblation,
)
from ._breakdown import Breakdown as Breakdown
from ._decode import decode as decode, Decoded as Decoded
from ._direct_effects import direct_effects as direct_effects, DirectEffects as DirectEffects
from ._lines import AbstractFit as AbstractFit, OLS as OLS
from ._logit_lens import logit_lens as logit_lens, LogitLens as LogitLens
from ._reference import Receivers as Receivers
from ._repair import SelfRepair as SelfRepair
from ._self_repair import self_repair as self_repair
