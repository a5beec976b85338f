"""What tests of attribution graphs share: dictionaries for all sublayers of a model, and a run in which all that a graph holds is held."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._run import site_shapes
from jaxcirc.parts import GatedMLP
from jaxcirc.saes import Decoder, Linear, ReLU, SAE, Transcoder

from .dictionaries import spliced_at, weights


def mlp_sites(model) -> list[Site]:
    return [Site(layer, Kind.MLP_OUT) for layer, block in enumerate(model.blocks) if block.mlp is not None]


def reads_of(model) -> list[Kind]:
    """The kinds of sites that a transcoder may read in a model."""
    kinds = (Kind.RESID_MID, Kind.LN2_NORMALIZED, Kind.MLP_IN, Kind.RESID_PRE, Kind.ATTN_IN)
    return [kind for kind in kinds if Site(0, kind) in site_shapes(model, 1)]


def transcoders(model, name: str = "transcoder-skip") -> dict[Site, Transcoder]:
    """One a layer, which read at one kind of site after another."""
    kinds = reads_of(model)
    of = lambda site: spliced_at(name, model, site, site.layer, Site(site.layer, kinds[site.layer % len(kinds)]))
    return {site: of(site) for site in mlp_sites(model)}


def saes(model) -> dict[Site, SAE]:
    """On what attention and MLPs write; those of the MLPs normalise their input."""
    at_mlps = {site: spliced_at("topk-standardised", model, site, site.layer) for site in mlp_sites(model)}
    attention = [Site(layer, Kind.ATTN_OUT) for layer in range(model.n_layers)]
    return {**at_mlps, **{site: spliced_at("relu", model, site, 10 + site.layer) for site in attention}}


def cross_layer(model, d_sae: int = 20) -> jc.CrossLayerTranscoder:
    """A random cross-layer transcoder with linear paths."""
    layers, width = model.n_layers, model.d_model
    each = [weights(jax.random.key(layer), width, d_sae=d_sae) for layer in range(layers)]
    written = lambda layer: jax.random.normal(jax.random.key(50 + layer), (d_sae, layers - layer, width)) / 2
    sites = tuple(Site(layer, Kind.MLP_OUT) for layer in range(layers))
    reads = tuple(Site(layer, Kind.MLP_IN) for layer in range(layers))
    return jc.CrossLayerTranscoder(
        W_enc=tuple(W_enc for W_enc, _, _, _ in each),
        b_enc=tuple(b_enc for _, b_enc, _, _ in each),
        decoders=tuple(Decoder(written(layer)) for layer in range(layers)),
        b_dec=tuple(b_dec for _, _, _, b_dec in each),
        activations=(ReLU(),) * layers,
        reads=reads,
        sites=sites,
        W_skip=tuple(jax.random.normal(jax.random.key(90 + layer), (width, width)) / 4 for layer in range(layers)),
    )


REPLACEMENTS: dict[str, Callable] = {
    "transcoders": transcoders,
    "saes": saes,
    "cross-layer": cross_layer,
    "neurons": lambda model: None,
}


def whole(model, dictionaries, tokens, **more) -> jc.AttributionGraph:
    """The graph with all that there is."""
    return jc.attribution_graph(
        model, dictionaries, tokens, max_nodes=None, node_threshold=1.0, edge_threshold=1.0, **more
    )


HELD = (
    Kind.PATTERN,
    Kind.LN1_SCALE,
    Kind.LN1_POST_SCALE,
    Kind.LN2_SCALE,
    Kind.LN2_POST_SCALE,
    Kind.FINAL_SCALE,
)


class Frozen:
    """A model at a prompt, run by `jc.run` with patterns, norm scales and what sublayers add held, but for steps that are added to it."""

    def __init__(self, model, dictionaries, tokens):
        self.model = dataclasses.replace(model, logit_cap=None)  # logits are explained before their cap
        self.tokens = tokens
        self.given = dictionaries
        self.by_site = {} if dictionaries is None or isinstance(dictionaries, jc.CrossLayerTranscoder) else dictionaries
        everything = [site for site in jc.sites(model) if site.kind != Kind.RESULT]
        _, self.clean = jax.jit(lambda model, tokens: jc.run(model, tokens, record=everything))(model, tokens)
        self.held = {site: jc.Replace(value) for site, value in self.clean.items() if site.kind in HELD}
        self.values = jax.jit(self._values)

    def __call__(self, steps: Mapping[Site, jax.Array]) -> dict[Site, jax.Array]:
        """Everything that is read, with steps added where something is written: by site of the read, the logits too."""
        full = {site: steps.get(site, jnp.zeros_like(self.clean[site])) for site in self.written()}
        return self.values(full)

    def written(self) -> list[Site]:
        kinds = (Kind.EMBED, Kind.MLP_OUT, Kind.ATTN_OUT)
        return [site for site in self.clean if site.kind in kinds]

    def _run(self, edits, *record):
        return jc.run(self.model, self.tokens, edits=edits, record=record)

    def _values(self, steps):
        embed = Site(None, Kind.EMBED)
        edits = {**self.held, embed: jc.Replace(self.clean[embed] + steps[embed])}
        reads = {}
        for layer, block in enumerate(self.model.blocks):
            attn, mlp = Site(layer, Kind.ATTN_OUT), Site(layer, Kind.MLP_OUT)
            if attn in self.by_site:
                reads[attn] = self._run(edits, attn)[1][attn]
                edits[attn] = jc.Replace(self.clean[attn] + steps[attn])
            else:
                edits[attn] = jc.Add(steps[attn])
            if block.mlp is None:
                continue
            for kind in (*reads_of(self.model), Kind.MLP_PRE):
                site = Site(layer, kind)
                reads[site] = self._run(edits, site)[1][site]
            reads |= self._gated(edits, layer)
            edits[mlp] = jc.Replace(self.clean[mlp] + steps[mlp] + self._by_skip(reads, layer))
        reads[Site(None, Kind.LOGITS)] = self._run(edits)[0][-1]
        return reads

    def _gated(self, edits, layer):
        """The neurons and the MLP's output with its gates held."""
        post, pre, out = (Site(layer, kind) for kind in (Kind.MLP_POST, Kind.MLP_PRE, Kind.MLP_OUT))
        if isinstance(self.model.blocks[layer].mlp, GatedMLP):
            held = {**edits, pre: jc.Replace(self.clean[pre])}
        else:
            gate = self.clean[post] / jnp.where(self.clean[pre] == 0, 1, self.clean[pre])
            held = {**edits, post: jc.Replace(gate * self._run(edits, pre)[1][pre])}
        return self._run(held, post, out)[1]

    def skip(self, layer) -> tuple[Site, jax.Array] | None:
        """What a linear path reads, and its matrix."""
        if isinstance(self.given, jc.CrossLayerTranscoder):
            return self.given.reads[layer], self.given.W_skip[layer]
        sae = self.by_site.get(Site(layer, Kind.MLP_OUT))
        return (sae.reads, sae.W_skip) if isinstance(sae, Transcoder) and sae.W_skip is not None else None

    def _by_skip(self, reads, layer):
        if (path := self.skip(layer)) is None:
            return 0.0
        read, W = path
        return (reads[read] - self.clean[read]) @ W

    def constant(self, read: Site) -> jax.Array:
        """What is at a site if the residual stream before it is 0."""
        before = (
            Kind.RESID_PRE if read.kind < Kind.RESID_MID or self.model.blocks[read.layer].parallel else Kind.RESID_MID
        )
        cut = Site(read.layer, before)
        return self._run({**self.held, cut: jc.Replace(jnp.zeros_like(self.clean[cut]))}, read)[1][read]

    def pre_activations(self, reads, table) -> jax.Array:
        """Of the nodes of a graph that have one, from what is read."""
        read = table[table.kind.isin(["latent", "logit"])]
        found = []
        for name, group in read.groupby("site", sort=False):  # which lie together
            values, pos, unit = self._pre(reads, Site.parse(name)), group.pos.to_numpy(), group.unit.to_numpy()
            found.append(values[unit] if name == "logits" else values[pos, unit])
        return jnp.concatenate(found)

    def _pre(self, reads, site):
        if site.kind == Kind.LOGITS:
            return reads[site] - reads[site].mean()
        if site.kind == Kind.MLP_POST:
            gated = isinstance(self.model.blocks[site.layer].mlp, GatedMLP)
            return reads[site if gated else Site(site.layer, Kind.MLP_PRE)]
        if isinstance(self.given, jc.CrossLayerTranscoder):
            clt = self.given
            return reads[clt.reads[site.layer]] @ clt.W_enc[site.layer] + clt.b_enc[site.layer]
        sae = self.by_site[site]
        x = reads[sae.reads]
        if isinstance(sae, SAE) and sae.normalisation is not None:  # its scale is held
            clean = self.clean[site]
            scale = (sae.normalisation.scale(clean) + sae.normalisation.eps)[:, None]
            x, sae = (x - x.mean(-1, keepdims=True)) / scale, dataclasses.replace(sae, normalisation=None)
        return dataclasses.replace(sae, activation=Linear()).encode(x)

    def vectors(self, table) -> dict[Site, np.ndarray]:
        """`[node seq d_model]`, by site: what every node of a graph writes; the row's own bias, and logits, nothing."""
        found = {site: np.zeros((len(table), *self.clean[site].shape)) for site in self.written()}
        errors = self._errors()
        for i, row in enumerate(table.itertuples()):
            if row.kind == "latent":
                for site, vector in self._directions(Site.parse(row.site), row.pos, row.unit):
                    found[site][i, row.pos] = row.activation * np.asarray(vector)
            elif row.kind == "error":
                site = Site.parse(row.site)
                found[site][i, row.pos] = errors[site][row.pos]
            elif row.kind in ("token", "position"):
                found[Site(None, Kind.EMBED)][i, row.pos] = self.clean[row.site][row.pos]
            elif row.kind == "bias" and row.site:
                site = Site.parse(row.site)
                found[site][i, row.pos] = self._bias(site, row.pos)
        return found

    def _errors(self):
        if isinstance(self.given, jc.CrossLayerTranscoder):
            clt = self.given
            acts = [clt.encode(layer, self.clean[read]) for layer, read in enumerate(clt.reads)]
            decode = lambda layer: clt.decode(layer, acts, self.clean[clt.reads[layer]])
            return {site: self.clean[site] - decode(layer) for layer, site in enumerate(clt.sites)}
        if not self.by_site:
            return {}
        _, cache = jc.run(self.model, self.tokens, saes=self.by_site, record=[site.error for site in self.by_site])
        return {site: cache[site.error] for site in self.by_site}

    def _directions(self, site, pos, unit):
        if isinstance(self.given, jc.CrossLayerTranscoder):
            for target in range(site.layer, self.model.n_layers):
                yield self.given.sites[target], self.given.decoders[site.layer].W_dec[unit, target - site.layer]
        elif site.kind == Kind.MLP_POST:
            out = Site(site.layer, Kind.MLP_OUT)
            yield out, self._behind(site.layer, self.model.blocks[site.layer].mlp.W_out[unit], pos)
        else:
            sae = self.by_site[site]
            yield site, sae.W_dec[unit] * sae.decoder_scale(self.clean[sae.reads])[pos]

    def _behind(self, layer, vector, pos):
        """A vector through the norm behind the MLP, at its scale."""
        norm = self.model.blocks[layer].ln2_post
        if norm is None:
            return vector
        scale = self.clean[Site(layer, Kind.LN2_POST_SCALE)][pos]
        return vector / scale * (1 if norm.weight is None else norm.offset + norm.weight)

    def _bias(self, site, pos):
        layer = site.layer
        if site.kind == Kind.ATTN_OUT and site not in self.by_site:
            return self.constant(site)[pos]
        if self.given is None or (not isinstance(self.given, jc.CrossLayerTranscoder) and site not in self.by_site):
            return self._behind(layer, self.model.blocks[layer].mlp.b_out, pos)
        if isinstance(self.given, jc.CrossLayerTranscoder):
            bias = self.given.b_dec[layer]
        else:
            sae = self.by_site[site]
            bias = sae.b_dec
            if isinstance(sae, SAE) and sae.normalisation is not None:
                bias = sae.normalisation.undo(bias, self.clean[site][pos])
        path = self.skip(layer)
        return bias if path is None or site.kind != Kind.MLP_OUT else bias + self.constant(path[0])[pos] @ path[1]
