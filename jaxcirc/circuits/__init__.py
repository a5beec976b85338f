"""Circuits and how to find them."""

from ._ablations import (
    AbstractAblation as AbstractAblation,
    MeanAblation as MeanAblation,
    ResampleAblation as ResampleAblation,
    ZeroAblation as ZeroAblation,
)
from ._annotate import annotate_latents as annotate_latents
from ._circuit import check_output as check_output, Circuit as Circuit
from ._curve import recovery_curve as recovery_curve
from ._discover import discover as discover, discover_batches as discover_batches
from ._evaluate import evaluate as evaluate
from ._evaluation import Evaluation as Evaluation
from ._load_annotations import load_annotations as load_annotations
from ._minimality import minimality as minimality
from ._prune import prune as prune
from ._steer import steer as steer
