"""Results, drawn as matplotlib figures, which are also written where a path is given. Pages of one latent, and of attention."""

from ._attention import attention as attention, AttentionPage as AttentionPage
from ._circuit_curve import draw_circuit_curve as draw_circuit_curve
from ._curves import draw_curves as draw_curves
from ._effects import draw_effects as draw_effects
from ._feature import feature as feature, FeaturePage as FeaturePage
from ._features import draw_features as draw_features
from ._graph_checks import draw_graph_checks as draw_graph_checks
from ._heads import draw_head_effects as draw_head_effects
from ._jacobian_norms import draw_jacobian_norms as draw_jacobian_norms
from ._lens import draw_lens as draw_lens
from ._patching import draw_patching as draw_patching
from ._path_patching import draw_path_patching as draw_path_patching
from ._patterns import draw_patterns as draw_patterns
from ._self_repair import draw_self_repair as draw_self_repair
from ._spectra import draw_spectra as draw_spectra
