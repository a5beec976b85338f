"""The verbs of batch jobs, by name: what the command line offers."""

from ._component_verbs import JobOfDirectEffects, JobOfEdgeAttribution, JobOfHeads, JobOfSelfRepair
from ._lens_verb import JobOfLens
from ._node_verbs import JobOfCircuits, JobOfEdges, JobOfNodes
from ._verbs import AbstractVerb


VERBS: dict[str, type[AbstractVerb]] = {
    verb.name: verb
    for verb in (
        JobOfNodes,
        JobOfEdges,
        JobOfCircuits,
        JobOfHeads,
        JobOfDirectEffects,
        JobOfSelfRepair,
        JobOfEdgeAttribution,
        JobOfLens,
    )
}
