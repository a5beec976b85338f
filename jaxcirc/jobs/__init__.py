"""Batch jobs: a verb over millions of prompts, into tables that are whole at any moment."""

from ._attribute import attribute as attribute, Attributed as Attributed, read_shards as read_shards
from ._component_verbs import (
    JobOfDirectEffects as JobOfDirectEffects,
    JobOfEdgeAttribution as JobOfEdgeAttribution,
    JobOfHeads as JobOfHeads,
    JobOfSelfRepair as JobOfSelfRepair,
)
from ._engine import AbstractEngine as AbstractEngine, Local as Local
from ._lens_verb import JobOfLens as JobOfLens
from ._node_verbs import JobOfCircuits as JobOfCircuits, JobOfEdges as JobOfEdges, JobOfNodes as JobOfNodes
from ._processes import Cluster as Cluster, join as join
from ._progress import JobReport as JobReport
from ._ray import Ray as Ray
from ._registry import VERBS as VERBS
from ._shards import Part as Part
from ._verbs import AbstractVerb as AbstractVerb
