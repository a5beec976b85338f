"""Latents of one dictionary by latents of another: of those that are on at one prompt, and of all on average over a corpus."""

from ._feature_jacobian import feature_jacobian as feature_jacobian
from ._mean_edges import mean_edges as mean_edges
from ._mean_result import MeanEdges as MeanEdges, TopEdges as TopEdges
from ._result import Correlation as Correlation, FeatureJacobian as FeatureJacobian
from ._steer import steer_features as steer_features
