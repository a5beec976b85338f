"""Circuits: how they are found, what they carry, and where they are kept and drawn."""

from ..components import (
    AbstractAblation as AbstractAblation,
    MeanAblation as MeanAblation,
    ResampleAblation as ResampleAblation,
    ZeroAblation as ZeroAblation,
)
from ._annotate import annotate_latents as annotate_latents, describe_latents as describe_latents
from ._circuit import Circuit as Circuit, load_feature_circuit as load_feature_circuit
from ._discover import discover as discover, discover_batches as discover_batches
from ._evaluation import Evaluation as Evaluation
from ._load_annotations import load_annotations as load_annotations
from ._meta import CircuitMeta as CircuitMeta
from ._rows import EdgeRow as EdgeRow, METRIC as METRIC, NodeRow as NodeRow
from ._trial import Trial as Trial
from ._verbs import (
    evaluate as evaluate,
    minimality as minimality,
    prune as prune,
    recovery_curve as recovery_curve,
    steer as steer,
)
