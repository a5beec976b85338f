"""Latents of one dictionary by latents of another: their Jacobian, at one prompt, of those that are on."""

from ._feature_jacobian import feature_jacobian as feature_jacobian
from ._result import Correlation as Correlation, FeatureJacobian as FeatureJacobian
from ._steer import steer_features as steer_features
