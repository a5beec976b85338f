"""Jacobians, edges and circuits of transformers in JAX."""

from . import saes as saes
from ._edits import (
    AbstractEdit as AbstractEdit,
    Add as Add,
    Apply as Apply,
    Blend as Blend,
    Detach as Detach,
    Replace as Replace,
)
from ._metrics import AbstractMetric as AbstractMetric, KL as KL, LogitDiff as LogitDiff, LogProb as LogProb
from ._run import run as run, sites as sites
from ._sites import Kind as Kind, Part as Part, Site as Site
from .models import Transformer as Transformer
