"""The localisation of circuits, scored: edges selected by their scores, how much of the behaviour they carry, and the files of these."""

from ._circuit_curve import CircuitCurve as CircuitCurve
from ._edge_scores import benchmark_graph as benchmark_graph, EdgeScores as EdgeScores
from ._given import SIZES as SIZES
from ._measure import circuit_curve as circuit_curve
from ._prune import prune as prune
from ._roc import ROC as ROC, roc as roc
from ._score_files import load_scores as load_scores, save_scores as save_scores
from ._select import select_edges as select_edges
from ._stability import Stability as Stability, stability as stability
from ._submission import load_submission as load_submission, save_submission as save_submission
