"""Sets of sites to hold: `jc.edge(…, frozen=jc.frozen.patterns(model))`. They are sets, so they unite by `|`."""

from .._run import sites
from .._sites import Kind, Site
from ..graph import first_curved
from ..models import Transformer


def layer_norms(model: Transformer) -> frozenset[Site]:
    """The scales of all norms: with them held a norm is linear, up to its bias. They are those of the norms before attention and the MLP,
    behind them, of queries and keys, and of the final one, whichever a model has.

    >>> sorted(map(str, jc.frozen.layer_norms(model)))[0]
    'blocks.0.ln1.hook_scale'
    """
    return _of_kinds(model, *_SCALES)


_SCALES = (
    Kind.LN1_SCALE,
    Kind.Q_SCALE,
    Kind.K_SCALE,
    Kind.LN1_POST_SCALE,
    Kind.LN2_SCALE,
    Kind.LN2_POST_SCALE,
    Kind.FINAL_SCALE,
)


def patterns(model: Transformer) -> frozenset[Site]:
    """The attention patterns of all layers: with them held attention is linear in the values."""
    return _of_kinds(model, Kind.PATTERN)


def gates(model: Transformer) -> frozenset[Site]:
    """The gates of all activation functions, and of a cap of the logits: with them held an MLP is linear in what it reads, up to its
    biases. A gated MLP has `act(pre)` as its gate, and is linear in `pre_linear`; a plain one has `(act(pre) - act(0)) / pre`, and is
    linear in `pre`.

    >>> sorted(map(str, jc.frozen.gates(model)))[0]
    'blocks.0.mlp.hook_act_gate'
    """
    return _of_kinds(model, Kind.MLP_GATE, Kind.LOGIT_GATE)


def detached(model: Transformer) -> frozenset[Site]:
    r"""The scales of all norms, the attention patterns and the gates: with them held the whole model is affine in what is embedded, and
    its Jacobians, called detached, give its values and not only their changes.

    With $A^h$ `[q_seq k_seq]` the patterns, $s$ `[seq 1]` the scales, $g$ `[seq d_mlp]` the gates, all at their values in the clean run,
    and $\odot$ a product number by number, its parts are

    $$\mathrm{norm}(x) = \frac{x - \bar x}{s} \odot w + b, \quad
    \mathrm{attn}(x) = \sum_h A^h (x W_V^h + b_V^h) W_O^h + b_O, \quad
    \mathrm{mlp}(x) = \big(g \odot (x W_{in} + b_{in}) + act(0)\big) W_{out} + b_{out},$$

    where $act(0)$ is 0 in a gated MLP, and for all activation functions of known models. So for the residual stream at any depth, or what
    is embedded, $x$ `[seq d_model]`, and the value $y$ at any later site but attention scores, which are products, and what is held,
    the logits among them (of a model that caps them behind the cap),

    $$y = \sum_p J_p\, x_p + c, \qquad J = \frac{\partial y}{\partial x}\Big|_{A, s, g},$$

    over the positions $p$, exactly. What $c$ is made of is biases, and positions that are embedded where $x$ is `hook_embed`;
    `jc.jacobian.intercept` gives it. It is 0 in a model without biases whose activation function is 0 at 0.

    **Returns:** a set of sites, for `jc.edge` and whatever else takes `frozen`.

    **Raises:** `ValueError` if that is not enough to make this model affine, as where a part of its own has a function that no site holds;
    it names the first site where it is not. This is read off the model's forward pass.

    >>> J = jc.edge(model, tokens, "blocks.0.hook_resid_pre", "logits", frozen=jc.frozen.detached(model), target_pos=[-1])
    >>> _, cache = jc.run(model, tokens, record=[J.source, J.target])
    >>> c = jc.jacobian.intercept(model, tokens, J.source, J.target, frozen=jc.frozen.detached(model), target_pos=[-1])
    >>> bool(jnp.allclose(J.mv(cache[J.source]) + c, cache[J.target][-1:], atol=1e-3))
    True

    **Reference:** Golden 2025, "Equivalent Linear Mappings of Large Language Models", arXiv 2505.24293. There it is the output embedding
    at the last position of models of gated MLPs without biases; here any site at any positions, with biases apart, plain MLPs, whose gate
    is the quotient above, and capped logits.
    """
    held = layer_norms(model) | patterns(model) | gates(model)
    curved = first_curved(model, held)
    if curved is not None:
        raise ValueError(
            f"frozen.detached: with its scales, patterns and gates held {model.name} is not affine in what is embedded: what is computed "
            f"at `{curved}` still bends or jumps, for a part before it has a function that no site holds. Hold more: unite "
            "jc.frozen.layer_norms, patterns and gates of the model with sites behind that part."
        )
    return held


def between(model: Transformer, source: Site | str, target: Site | str) -> frozenset[Site]:
    """The outputs of every sublayer between `source` and `target`, so that what is left is their direct connection.

    >>> sorted(map(str, jc.frozen.between(model, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")))
    ['blocks.1.hook_attn_out', 'blocks.1.hook_mlp_out']
    """
    first, last = Site.parse(source), Site.parse(target)
    return frozenset(site for site in _of_kinds(model, Kind.ATTN_OUT, Kind.MLP_OUT) if first < site < last)


def _of_kinds(model: Transformer, *kinds: Kind) -> frozenset[Site]:
    return frozenset(site for site in sites(model) if site.kind in kinds)
