"""Jacobians, edges and circuits of transformers in JAX.

What experiments begin with stands here; the rest in namespaces: `jc.circuits`, `jc.components`, `jc.features`, `jc.attribution`,
`jc.attribution_graphs`, `jc.edges`, `jc.generation`, `jc.patching`, `jc.localisation`, `jc.scrubbing`, `jc.jacobian`, `jc.lens`,
`jc.jobs`, `jc.view`, `jc.data`, `jc.saes`, `jc.interop`.
"""

# First: Ctrl-C holds from here on, where this process is the command; the imports below take a second.
from . import _stop as _stop


# isort: split
from . import (
    attribution as attribution,
    attribution_graphs as attribution_graphs,
    circuits as circuits,
    components as components,
    data as data,
    edges as edges,
    features as features,
    generation as generation,
    interop as interop,
    jacobian as jacobian,
    jobs as jobs,
    lens as lens,
    localisation as localisation,
    patching as patching,
    saes as saes,
    scrubbing as scrubbing,
    view as view,
)
from ._edits import (
    AbstractEdit as AbstractEdit,
    Add as Add,
    Apply as Apply,
    At as At,
    Blend as Blend,
    Detach as Detach,
    Replace as Replace,
    Scale as Scale,
)
from ._metrics import (
    AbstractMetric as AbstractMetric,
    AbstractPositionMetric as AbstractPositionMetric,
    KL as KL,
    LogitDiff as LogitDiff,
    LogProb as LogProb,
)
from ._progress import progress_bar as progress_bar
from ._run import run as run, sites as sites
from ._sites import Kind as Kind, Part as Part, Site as Site
from ._version import __version__ as __version__
from .attribution import (
    AtPStar as AtPStar,
    edge_effects as edge_effects,
    EdgeEffects as EdgeEffects,
    ExactPatching as ExactPatching,
    Gradient as Gradient,
    head_effects as head_effects,
    HeadEffects as HeadEffects,
    IntegratedGradients as IntegratedGradients,
    node_effects as node_effects,
    NodeEffects as NodeEffects,
)
from .attribution_graphs import (
    attribution_graph as attribution_graph,
    AttributionGraph as AttributionGraph,
    check_graph as check_graph,
    explain_edge as explain_edge,
    head_loadings as head_loadings,
    intervene as intervene,
    qk_attribution as qk_attribution,
)
from .circuits import (
    Circuit as Circuit,
    discover as discover,
    discover_batches as discover_batches,
    evaluate as evaluate,
    Evaluation as Evaluation,
    load_annotations as load_annotations,
    minimality as minimality,
    prune as prune,
    recovery_curve as recovery_curve,
    steer as steer,
)
from .components import (
    ablate as ablate,
    ablate_each as ablate_each,
    AbstractAblation as AbstractAblation,
    AbstractFit as AbstractFit,
    AbstractValues as AbstractValues,
    Breakdown as Breakdown,
    decode as decode,
    Decoded as Decoded,
    direct_effects as direct_effects,
    DirectEffects as DirectEffects,
    logit_lens as logit_lens,
    LogitLens as LogitLens,
    Mean as Mean,
    MeanAblation as MeanAblation,
    OLS as OLS,
    Resample as Resample,
    ResampleAblation as ResampleAblation,
    self_repair as self_repair,
    SelfRepair as SelfRepair,
    Zero as Zero,
    ZeroAblation as ZeroAblation,
)
from .edges import (
    edges_into as edges_into,
    edges_out_of as edges_out_of,
    EdgesInto as EdgesInto,
    EdgesOutOf as EdgesOutOf,
)
from .features import (
    feature_jacobian as feature_jacobian,
    FeatureJacobian as FeatureJacobian,
    steer_features as steer_features,
)
from .generation import generate as generate, Generation as Generation
from .graph import component_graph as component_graph, ComponentGraph as ComponentGraph
from .interop import (
    from_pretrained as from_pretrained,
    from_torch as from_torch,
    from_transformer_lens as from_transformer_lens,
    load_cross_layer_transcoder as load_cross_layer_transcoder,
    load_sae as load_sae,
    load_saes as load_saes,
    load_tokenizer as load_tokenizer,
    save_sae as save_sae,
    to_torch_state_dict as to_torch_state_dict,
)
from .jacobian import (
    block_paths as block_paths,
    Certificate as Certificate,
    edge as edge,
    EdgeJacobian as EdgeJacobian,
    frozen as frozen,
    load_jacobian as load_jacobian,
    mediated_edges as mediated_edges,
    MediatedEdges as MediatedEdges,
    save_jacobian as save_jacobian,
    SavedJacobian as SavedJacobian,
    select as select,
)
from .jobs import attribute as attribute
from .lens import fit_lens as fit_lens, JacobianLens as JacobianLens, LensReadout as LensReadout
from .localisation import circuit_curve as circuit_curve, CircuitCurve as CircuitCurve
from .models import process_weights as process_weights, Transformer as Transformer
from .nodes import (
    Bias as Bias,
    Direction as Direction,
    Error as Error,
    Final as Final,
    Head as Head,
    Latent as Latent,
    Neuron as Neuron,
    Position as Position,
    Token as Token,
)
from .patching import (
    activation_patch as activation_patch,
    edge_attribution as edge_attribution,
    patch_edges as patch_edges,
    PatchedMetrics as PatchedMetrics,
    path_patch as path_patch,
)
from .saes import CrossLayerTranscoder as CrossLayerTranscoder
from .scrubbing import (
    Claim as Claim,
    Conditional as Conditional,
    Exact as Exact,
    Scrub as Scrub,
    scrub as scrub,
    Unconditional as Unconditional,
)
from .view import (
    draw_circuit_curve as draw_circuit_curve,
    draw_curves as draw_curves,
    draw_effects as draw_effects,
    draw_features as draw_features,
    draw_graph_checks as draw_graph_checks,
    draw_head_effects as draw_head_effects,
    draw_jacobian_norms as draw_jacobian_norms,
    draw_lens as draw_lens,
    draw_patching as draw_patching,
    draw_path_patching as draw_path_patching,
    draw_patterns as draw_patterns,
    draw_self_repair as draw_self_repair,
    draw_spectra as draw_spectra,
)
