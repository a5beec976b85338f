"""What a verb about edges is asked: its arguments, checked before any run, and the clean run that answers."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from .._checks import check_choice, check_list
from .._edits import as_pytree
from .._guard import check_backend
from .._metrics import AbstractMetric, Metric
from .._run import check_mask, check_metric, check_scalar, check_tokens, site_shapes
from .._sites import did_you_mean, Kind, layer_of, Site
from .._typing import Keys, Tokens
from ..models import check_known, Transformer
from ..nodes import Bias, check_node, Direction, Error, Final, Head, is_there, Latent, Neuron, Node
from ._dictionaries import Dictionaries, encode, error, Given, given_dictionaries, reads, sites_of
from ._layer import Layer
from ._point import clean_point, Point


T = TypeVar("T")


class Question(eqx.Module):
    """A model, one prompt's clean run, and what the dictionaries make of it.

    **Attributes:** `acts[site]` `[seq d_sae]` and `errors[site]` `[seq width]`: of each dictionary. - `activation`: whether nodes are
    read after their activation function, `"post"`, or before it, `"pre"`.
    """

    model: Transformer
    point: Point
    dictionaries: Dictionaries
    acts: dict[Site, Float[Array, "seq d_sae"]]
    errors: dict[Site, Float[Array, "seq width"]]
    activation: str = eqx.field(static=True)

    def layer(self, number: int) -> Layer:
        """One block of the run."""
        point, gradients = self.point, self.point.gradients
        here = None if gradients is None else gradients[number]
        return Layer(
            self.model.blocks[number],
            point.masks[number],
            point.values[number],
            here,
            point.frozen[number],
            self.activation,
        )

    def flat(self, site: Site) -> Float[Array, "seq width"]:
        """The value at a site, one vector a position."""
        if site.layer is None:
            return self.point.token
        value = self.point.values[site.layer][site.kind]
        return value.reshape(value.shape[0], -1)

    def gradient(self, site: Site) -> Float[Array, "seq width"]:
        """The metric's gradient there."""
        if site.layer is None or self.point.gradients is None:
            assert self.point.embed_gradient is not None
            return self.point.embed_gradient
        value = self.point.gradients[site.layer][site.kind]
        return value.reshape(value.shape[0], -1)


def ask(
    what: str,
    model: Transformer,
    tokens: Tokens,
    metric: Metric | None,
    nodes: Sequence[Node],
    *,
    saes: Given,
    frozen: Iterable[Site | str],
    activation: str = "post",
    mask: Keys | None,
) -> Question:
    """Checks arguments and runs the prompt. **Raises:** `ValueError` and `TypeError`, each with what was expected and what came."""
    check_backend()
    check_tokens(model, tokens)
    check_mask(tokens, mask)
    check_known(what, model, "ln1", "attn", "ln1_post", "ln2", "mlp", "ln2_post")
    check_choice(f"{what}: activation", activation, ("post", "pre"))
    dictionaries = given_dictionaries(what, model, saes)
    held = check_frozen(what, model, frozen)
    if metric is not None:
        metric = _of_one_prompt(what, model, metric, tokens.shape[0])
    real = np.ones(tokens.shape, bool) if mask is None or isinstance(mask, Tracer) else np.asarray(mask)
    widths = {site: each.d_sae for site, each in dictionaries.items()}
    for node in nodes:
        check_node(what, model, node, real, widths)
    lowest = min((_lowest_layer(model, node, dictionaries) for node in nodes), default=model.n_layers)
    point = clean_point(model, metric, jnp.asarray(tokens), mask, sites_of(dictionaries), held, lowest)
    question = Question(model, point, dictionaries, {}, {}, activation)
    acts = {site: encode(site, each, question.flat(reads(site, each))) for site, each in dictionaries.items()}
    errors = {site: _error(question, acts, site) for site in dictionaries}
    return Question(model, point, dictionaries, acts, errors, activation)


def blanked(question: Question, node: Node, edges: T) -> T:
    """The edges of a node, or NaN where its indices, which under `jit` and `vmap` are not known, are of nothing."""
    widths = {site: each.d_sae for site, each in question.dictionaries.items()}
    there = is_there(question.model, node, question.point.seq, widths)
    if there is None:
        return edges
    nothing = lambda x: jnp.asarray(jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0, x.dtype)
    return jax.tree.map(lambda x: jnp.where(there, x, nothing(x)), edges)


def _lowest_layer(model: Transformer, node: Node, dictionaries: Dictionaries) -> int:
    """The lowest layer in which the metric's gradients are wanted."""
    match node:
        case Neuron() | Head():
            return node.layer
        case Latent() | Error():
            sites = (node.site, reads(node.site, dictionaries[node.site]))
            return min(0 if site.layer is None else site.layer for site in sites)
        case Bias():
            return layer_of(node.site)
        case Direction() | Final():
            return model.n_layers
    return 0


def _error(question: Question, acts: dict[Site, Array], site: Site) -> Float[Array, "seq width"]:
    each = question.dictionaries[site]
    return error(site, each, question.flat(reads(site, each)), question.flat(site), acts)


def _of_one_prompt(what: str, model: Transformer, metric: Any, seq: int) -> Metric:
    """The metric as a pytree of one prompt's logits."""
    check_metric(model, metric)
    metric = as_pytree(metric)
    if isinstance(metric, AbstractMetric) and all(jnp.shape(leaf)[:1] == (1,) for leaf in jax.tree.leaves(metric)):
        metric = jax.tree.map(lambda leaf: leaf[0], metric)  # that of a batch of one
    check_scalar(metric, jax.ShapeDtypeStruct((seq, len(model.b_U)), model.activation_dtype))
    return metric


HELD = (
    Kind.LN1_SCALE,
    Kind.Q,
    Kind.K,
    Kind.V,
    Kind.Q_SCALE,
    Kind.Q_NORMALIZED,
    Kind.K_SCALE,
    Kind.K_NORMALIZED,
    Kind.ROT_Q,
    Kind.ROT_K,
    Kind.ATTN_SCORES,
    Kind.PATTERN,
    Kind.LN1_POST_SCALE,
    Kind.LN2_SCALE,
    Kind.MLP_GATE,
    Kind.LN2_POST_SCALE,
    Kind.FINAL_SCALE,
    Kind.LOGIT_GATE,
)


def check_frozen(what: str, model: Transformer, frozen: Iterable[Site | str]) -> frozenset[Site]:
    """The sites to hold. **Raises:** `ValueError` for one that the model does not have, or that is a node's own way to the stream."""
    held = frozenset(map(Site.parse, check_list(f"{what}: frozen", "sites", frozen)))
    there = site_shapes(model, 1)
    for site in sorted(held):
        if site not in there:
            raise ValueError(
                f"{what}: frozen: no site `{site}` in {model.name}. {did_you_mean(str(site), map(str, there))}"
            )
        if site.kind not in HELD:
            raise ValueError(
                f"{what}: frozen: `{site}` is on the way of nodes themselves, so that their edges would be cut, not held. What can be "
                "held are norms' scales (jc.frozen.layer_norms(model)), patterns (jc.frozen.patterns(model)), gates "
                "(jc.frozen.gates(model)), scores, queries, keys and values."
            )
    return held
