"""What is held on the way back: nothing, or what makes each block linear in what it reads."""

import dataclasses

import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._precision import widened
from .._sites import Kind, Site
from .._tap import Tap
from ..models import Transformer
from ..parts import gate_of, GatedMLP
from . import frozen


RULES = ("exact", "lrp", "detached")


class HalvedMLP(GatedMLP):
    """A gated MLP whose product of two activations passes half of a derivative to each factor, with the quotient `act(pre) / pre` held.

    Its values are those of the MLP; what differs is what `jax.jvp` and `jax.vjp` make of it (Jafari et al. 2025, arXiv 2508.21258, after
    the rules of layer-wise relevance propagation for products: Achtibat et al. 2024, arXiv 2402.05602).
    """

    def __call__(self, x: Float[Array, "seq d_model"], tap: Tap) -> Float[Array, "seq d_model"]:
        weights, hold = widened(self), jax.lax.stop_gradient
        pre = tap(Kind.MLP_PRE, x @ weights.W_gate + weights.b_gate)
        linear = tap(Kind.MLP_PRE_LINEAR, x @ weights.W_in + weights.b_in)
        gate = weights.act(pre)
        halves = (hold(gate_of(weights.act, pre) * linear) * pre + hold(gate) * linear) / 2
        post = tap(Kind.MLP_POST, halves + hold(gate * linear - halves))
        return post @ weights.W_out + weights.b_out


def ruled(model: Transformer, rule: str) -> tuple[Transformer, frozenset[Site]]:
    """The model whose derivatives follow a rule, and the sites to hold in it.

    - `"exact"`: the model as it is.
    - `"lrp"`: the scales of all norms and the attention patterns are held; activation functions are `pre` times a held quotient; of a
      product of two activations, as in a gated MLP, each factor passes half.
    - `"detached"`: the scales, the patterns and the gates are held, so that the whole map is linear.
    """
    if rule == "exact":
        return model, frozenset()
    if rule == "detached":
        return model, frozen.detached(model)
    blocks = tuple(
        dataclasses.replace(block, mlp=HalvedMLP(**vars(block.mlp))) if type(block.mlp) is GatedMLP else block
        for block in model.blocks
    )
    gates = {site for site in frozen.gates(model) if not _is_gated(model, site)}
    held = frozen.layer_norms(model) | frozen.patterns(model) | gates
    return eqx.tree_at(lambda model: model.blocks, model, blocks), frozenset(held)


def _is_gated(model: Transformer, site: Site) -> bool:
    return site.layer is not None and type(model.blocks[site.layer].mlp) is GatedMLP
