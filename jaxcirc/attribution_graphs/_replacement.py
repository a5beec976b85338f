r"""What stands for a model's sublayers in the graph of a prompt: latents that are on, errors and biases, which sum to what is added.

A latent reads by a covector $e$ and writes vectors $a_i d_i$ to the residual stream, $a_i$ its activation; so at a site with a dictionary

$$\text{value} = \sum_i a_i d_i + \text{error} + \text{bias} + \text{linear path},$$

the sum over the latents that are on. A latent's pre-activation is $\langle e, x \rangle + \text{constant}$, $x$ what it reads; where the
dictionary normalises its input the scale of that is held, as those of the model's norms are.

Where there are no dictionaries, neurons are the latents. A neuron's pre-activation is its MLP's; that of a gated MLP's neuron is its value,
with its gate held, which is linear in what the MLP reads.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._indexing import slice_filled, take
from .._precision import wide
from .._sites import Kind, layer_of, Site
from .._tap import site_read
from ..parts import GatedMLP, MLP
from ..parts._held_norm import push_through_norm
from ..runs import rounded_up
from ..saes import (
    AbstractDictionary,
    anonymous,
    CrossLayerTranscoder,
    Identity,
    Linear,
    SAE,
    Transcoder,
)
from ..units import not_zero
from ._encoder import Encoder
from ._given import Dictionaries
from ._linear import Linearised, Skip


@dataclasses.dataclass(frozen=True, eq=False)
class Written:
    """What latents write at a site: latent `i` the vector `scale[i] rows[index[i]]`."""

    site: Site
    rows: Float[Array, "row d_model"]
    index: Int[np.ndarray, " latent"]
    scale: Float[np.ndarray, " latent"]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """The latents of one dictionary that are on, in the order of positions, and of units.

    **Attributes:** `site`: of the dictionary. - `read`: what its encoder reads. - `pos`, `unit`, `acts`, and `pre`, the pre-activations.
    - `writes`: what they write, one entry a site.
    """

    site: Site
    read: Site
    encoder: Encoder
    pos: Int[np.ndarray, " latent"]
    unit: Int[np.ndarray, " latent"]
    acts: Float[np.ndarray, " latent"]
    pre: Float[np.ndarray, " latent"]
    writes: tuple[Written, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Replaced:
    """What stands for the sublayers: latents, and of each position the errors, one a site with a dictionary, and the biases, one a site."""

    features: tuple[Features, ...]
    errors: dict[Site, Float[Array, "seq d_model"]]
    biases: dict[Site, Float[Array, "seq d_model"]]


def linear_paths(dictionaries: Dictionaries) -> dict[int, Skip]:
    """The linear paths beside MLPs that dictionaries have, by layer."""
    if isinstance(dictionaries, CrossLayerTranscoder):
        if dictionaries.W_skip is None:
            return {}
        return {
            layer_of(read): Skip(W, read.kind) for read, W in zip(dictionaries.reads, dictionaries.W_skip, strict=True)
        }
    found = {}
    for site, sae in dictionaries.items():
        if isinstance(sae, Transcoder) and sae.W_skip is not None:
            found[layer_of(site)] = Skip(sae.W_skip, site_read(site, sae).kind)
    return found


def closed_layers(dictionaries: Dictionaries) -> frozenset[int]:
    """The layers whose attention has a dictionary."""
    if isinstance(dictionaries, CrossLayerTranscoder):
        return frozenset()
    return frozenset(layer_of(site) for site in dictionaries if site.kind == Kind.ATTN_OUT)


def replace_sublayers(linear: Linearised, dictionaries: Dictionaries) -> Replaced:
    """Finds what stands for each sublayer in the clean run."""
    model = linear.model
    biases = {
        Site(layer, Kind.ATTN_OUT): linear.constant(Site(layer, Kind.ATTN_OUT))
        for layer in range(model.n_layers)
        if layer not in linear.closed
    }
    features, baselines = [], {}
    if isinstance(dictionaries, CrossLayerTranscoder):
        features += _of_cross_layer(linear, dictionaries)
        baselines = dict(zip(dictionaries.sites, map(wide, dictionaries.b_dec), strict=True))
    else:
        for site, sae in dictionaries.items():
            features.append(_of_dictionary(linear, site, sae))
            baselines[site] = _baseline(sae, linear.values(layer_of(site), site_read(site, sae).kind))
        if all(site.kind != Kind.MLP_OUT for site in dictionaries):
            for layer in range(model.n_layers):
                if model.blocks[layer].mlp is not None:
                    found, bias = _of_neurons(linear, layer)
                    features.append(found)
                    biases[Site(layer, Kind.MLP_OUT)] = bias
    errors = {}
    for site, baseline in baselines.items():
        biases[site], errors[site] = _bias_and_error(linear, features, site, baseline)
    in_order = sorted(features, key=lambda each: each.site)
    return Replaced(tuple(in_order), dict(sorted(errors.items())), dict(sorted(biases.items())))


def _bias_and_error(
    linear: Linearised, features: Sequence[Features], site: Site, baseline: Float[Array, "*seq d_model"]
) -> tuple[Float[Array, "seq d_model"], Float[Array, "seq d_model"]]:
    """Splits what the latents do not write at a site into a bias and the error; `baseline` is what no latent at all would write there."""
    layer = layer_of(site)
    value = linear.values(layer, site.kind)[site.kind]
    path = None
    if site.kind == Kind.MLP_OUT and layer in linear.skips:
        read, W = linear.skips[layer].at(layer)
        path = linear.values(layer, read.kind)[read.kind], linear.constant(read), W
    bias, error = _split(value, baseline, path)
    for each in features:
        for written in each.writes:
            if written.site == site:
                error = _without(error, written, each.pos)
    return bias, error


@jax.jit
def _split(value, baseline, path):
    """The bias and the rest. Of a linear path what it makes of the constant part of what it reads is a bias; the rest goes on."""
    bias = jnp.broadcast_to(baseline, value.shape)
    if path is None:
        return bias, value - bias
    x, constant, W = path
    # [seq d_in] · [d_in d_model] -> [seq d_model]
    return bias + constant @ wide(W), value - bias - x @ wide(W)


def _without(error: Float[Array, "seq d_model"], written: Written, pos: Int[np.ndarray, " latent"]):
    """Subtracts what latents write at each position; some at a time, as of each there is a vector."""
    for begin in range(0, len(pos), _AT_ONCE):
        some = (slice_filled(x, begin, _AT_ONCE) for x in (pos, written.index, written.scale))
        error = _subtract(error, written.rows, *some)
    return error


_AT_ONCE = 4096  # latents whose vectors are summed at once


@jax.jit
def _subtract(error, rows, pos, index, scale):
    return error.at[pos].add(-scale[:, None] * wide(take(rows, index)))


def _of_dictionary(linear: Linearised, site: Site, sae: AbstractDictionary) -> Features:
    read = site_read(site, sae)
    x = linear.values(layer_of(site), read.kind)[read.kind]
    acts, pre, stretch, constants = _encode(anonymous(sae), x)
    stretch, index, on = np.asarray(stretch), *not_zero(np.asarray(acts))
    normalisation = sae.normalisation if isinstance(sae, SAE) else None
    encoder = Encoder(sae.W_enc, constants, None, normalisation, clean=None if normalisation is None else x)
    pos, unit = index.T
    written = Written(site, sae.W_dec, unit, on * stretch[pos])
    return Features(site, read, encoder, pos, unit, on, np.asarray(pre)[pos, unit], (written,))


def _of_cross_layer(linear: Linearised, clt: CrossLayerTranscoder) -> Iterator[Features]:
    for layer, (read, site) in enumerate(zip(clt.reads, clt.sites, strict=True)):
        x = linear.values(layer, read.kind)[read.kind]
        nothing = jnp.zeros((clt.W_enc[layer].shape[1], 0), x.dtype)
        encoding = Transcoder(
            W_enc=clt.W_enc[layer],
            b_enc=clt.b_enc[layer],
            W_dec=nothing,
            b_dec=nothing[0],
            activation=clt.activations[layer],
        )
        acts, pre, _, _ = _encode(encoding, x)
        index, on = not_zero(np.asarray(acts))
        pos, unit = index.T
        units, which = np.unique(unit, return_inverse=True)
        # Of decoders in files only these rows are read, once.
        writes = tuple(
            Written(clt.sites[target], _of_a_size(clt.decoder_rows(layer, units, target)), which, on)
            for target in range(layer, clt.n_layers)
        )
        encoder = Encoder(clt.W_enc[layer], clt.b_enc[layer])
        yield Features(site, read, encoder, pos, unit, on, np.asarray(pre)[pos, unit], writes)


def _of_a_size(rows: Float[Array, "row d_model"]) -> Float[Array, "filled d_model"]:
    """Fills rows up to one of few sizes, so that layers share programs."""
    return jax.device_put(slice_filled(np.asarray(rows), 0, rounded_up(len(rows), steps=2)))


def _of_neurons(linear: Linearised, layer: int) -> tuple[Features, Float[Array, "seq d_model"]]:
    """The neurons of a layer, and the bias that its MLP adds, through the norm behind it."""
    block = linear.model.blocks[layer]
    mlp, norm = block.mlp, block.ln2_post
    assert isinstance(mlp, MLP | GatedMLP)
    kinds = [Kind.MLP_POST, Kind.MLP_PRE, *([] if norm is None else [Kind.LN2_POST_SCALE])]
    values = linear.values(layer, *kinds)
    post, pre = values[Kind.MLP_POST], values[Kind.MLP_PRE]
    gates = mlp.act(pre) if isinstance(mlp, GatedMLP) else None
    index, on = not_zero(np.asarray(post))
    pos, unit = index.T
    rows, bias = wide(mlp.W_out), jnp.broadcast_to(wide(mlp.b_out), (len(post), len(mlp.b_out)))
    scale = np.ones(len(post), on.dtype)
    if norm is not None:
        divisor = values[Kind.LN2_POST_SCALE]
        rows, bias = push_through_norm(norm, rows), push_through_norm(norm, bias) / divisor
        own = getattr(norm, "bias", None)
        bias, scale = bias if own is None else bias + wide(own), 1 / np.asarray(divisor)[:, 0]
    site, read = Site(layer, Kind.MLP_POST), Site(layer, Kind.MLP_IN)
    before = np.asarray(post if gates is not None else pre)[pos, unit]
    written = Written(Site(layer, Kind.MLP_OUT), rows, unit, on * scale[pos])
    return Features(site, read, Encoder(mlp.W_in, mlp.b_in, gates), pos, unit, on, before, (written,)), bias


@jax.jit
def _encode(
    sae: AbstractDictionary, x: Float[Array, "seq d_in"]
) -> tuple[Float[Array, "seq d_sae"], Float[Array, "seq d_sae"], Float[Array, " seq"], Float[Array, " d_sae"]]:
    """Computes latents, pre-activations, by how much the decoder stretches what is written at each position, and the pre-activations of
    nothing, behind what is done to the input.
    """
    linear = _linear(sae)
    bare = dataclasses.replace(linear, normalisation=None) if isinstance(linear, SAE) else linear
    return sae.encode(x), linear.encode(x), sae.decoder_scale(x), bare.encode(jnp.zeros_like(x[0]))


def _linear(sae: AbstractDictionary) -> AbstractDictionary:
    """The same dictionary without its activation function: it encodes to pre-activations."""
    return dataclasses.replace(sae, activation=Linear()) if isinstance(sae, SAE | Transcoder) else sae


def _baseline(sae: AbstractDictionary, values: Mapping[Kind, Float[Array, "seq d_in"]]) -> Float[Array, "*seq d_out"]:
    """What the decoder writes if no latent is on, without a linear path: at every position, where that depends on what is read."""
    (x,) = values.values()
    if isinstance(sae, Identity):
        return jnp.zeros(sae.width, x.dtype)
    assert isinstance(sae, SAE | Transcoder)
    normalisation = sae.normalisation if isinstance(sae, SAE) else None
    return (
        wide(sae.b_dec) if normalisation is None else normalisation.undo(jnp.broadcast_to(wide(sae.b_dec), x.shape), x)
    )
