"""Names, order and misuse of sites."""

import itertools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Part, Site
from jaxcirc._run import site_shapes
from jaxcirc._sites import by_site, did_you_mean
from jaxcirc._tap import Everything, Tap
from jaxcirc.parts import LayerNorm

from .helpers import assert_close, model_named, MODELS, tokens_for


ALL_SITES = [
    Site(layer, kind, part)
    for kind, part in itertools.product(Kind, Part)
    for layer in ((0, 12) if kind.in_block else (None,))
]


def table(model: jc.Transformer) -> dict[str, str]:
    """The hook points that `model` must have, in the order in which a forward pass comes by them, each with its axes."""
    resid = "seq d_model"
    norm = lambda name, part: {} if part is None else {f"{name}.hook_scale": "seq 1", f"{name}.hook_normalized": resid}
    names = {"hook_embed": resid} | ({} if model.W_pos is None else {"hook_pos_embed": resid})
    for layer, block in enumerate(model.blocks):
        attn, gated = block.attn, hasattr(block.mlp, "W_gate")
        of_block = {"hook_resid_pre": resid} | norm("ln1", block.ln1) | {"attn.hook_in": resid}
        of_block |= {f"attn.hook_{part}": f"seq {heads} d_head" for part, heads in (("q", "head"), *KEYS_AND_VALUES)}
        for part, heads, of_part in (("q", "head", attn.q_norm), ("k", "kv_head", attn.k_norm)):
            if of_part is not None:
                of_block[f"attn.{part}_norm.hook_scale"] = "seq 1 1" if of_part.joint else f"seq {heads} 1"
                of_block[f"attn.{part}_norm.hook_normalized"] = f"seq {heads} d_head"
        if attn.rotary is not None:
            of_block |= {"attn.hook_rot_q": "seq head d_head", "attn.hook_rot_k": "seq kv_head d_head"}
        of_block |= {"attn.hook_attn_scores": "head seq seq", "attn.hook_pattern": "head seq seq"}
        of_block |= {"attn.hook_z": "seq head d_head", "attn.hook_result": "seq head d_model"}
        if block.ln1_post is not None:
            of_block |= {"attn.hook_out": resid} | norm("ln1_post", block.ln1_post)
        of_block |= {"hook_attn_out": resid}
        if block.mlp is not None:
            of_block |= {} if block.parallel else {"hook_resid_mid": resid}
            of_block |= norm("ln2", block.ln2) | {"mlp.hook_in": resid, "mlp.hook_pre": "seq d_mlp"}
            of_block |= {"mlp.hook_pre_linear": "seq d_mlp"} if gated else {}
            of_block |= {"mlp.hook_act_gate": "seq d_mlp", "mlp.hook_post": "seq d_mlp"}
            if block.ln2_post is not None:
                of_block |= {"mlp.hook_out": resid} | norm("ln2_post", block.ln2_post)
            of_block |= {"hook_mlp_out": resid}
        of_block |= {"hook_resid_post": resid}
        names |= {f"blocks.{layer}.{name}": axes for name, axes in of_block.items()}
    names |= norm("ln_final", model.ln_final)
    names |= {} if model.logit_cap is None else {"hook_logit_gate": "seq d_vocab_out"}
    return names | {"logits": "seq d_vocab_out"}


KEYS_AND_VALUES = (("k", "kv_head"), ("v", "kv_head"))


def documented() -> dict[str, tuple[str, str]]:
    """The table in the documentation of `jc.Kind`: for each name its axes, and what it holds."""
    rows = re.findall(r"^ *\| `([\w.]+)` \| `([\w ]+)` \| (.+) \|$", Kind.__doc__, re.M)
    return {name: (axes, holds) for name, axes, holds in rows}


def forward(model: jc.Transformer, tokens) -> dict[str, np.ndarray]:
    """What the documentation says that each site holds, computed by NumPy from the weights."""
    array = lambda x: np.asarray(x, np.float64)
    found, seq = {}, len(tokens)

    def norm(name, part, x):
        """What comes of a norm, if there is one, after its weight and bias."""
        if part is None:
            return x
        axes = tuple(range(1, x.ndim)) if getattr(part, "joint", False) else -1
        x = x - x.mean(-1, keepdims=True) if isinstance(part, LayerNorm) else x
        found[f"{name}.hook_scale"] = np.sqrt((x**2).mean(axes, keepdims=True) + part.eps)
        y = found[f"{name}.hook_normalized"] = x / found[f"{name}.hook_scale"]
        y = y if part.weight is None else y * (getattr(part, "offset", 0) + array(part.weight))
        return y if getattr(part, "bias", None) is None else y + array(part.bias)

    def rotated(rotary, x):
        """Turns each pair of coordinates, a complex number, by the angle of its position."""
        pairs = rotary.cos.shape[-1]
        turn = (array(rotary.cos)[1, :seq] + 1j * array(rotary.sin)[1, :seq])[:, None]
        turned = (x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * turn
        return np.concatenate([turned.real, turned.imag, x[..., 2 * pairs :]], axis=-1)

    capped = lambda x, cap: x if cap is None else cap * np.tanh(x / cap)
    resid = found["hook_embed"] = array(model.W_E)[np.asarray(tokens)] * model.embed_scale
    if model.W_pos is not None:
        found["hook_pos_embed"] = array(model.W_pos)[:seq]
        resid = resid + found["hook_pos_embed"]
    for layer, block in enumerate(model.blocks):
        put = lambda name, value, layer=layer: found.setdefault(f"blocks.{layer}.{name}", value)
        attn, mlp, here = block.attn, block.mlp, f"blocks.{layer}"
        x = put("attn.hook_in", norm(f"{here}.ln1", block.ln1, put("hook_resid_pre", resid)))
        q, k, v = (
            put(f"attn.hook_{name}", np.einsum("sm,hmd->shd", x, array(W)) + array(b))
            for name, W, b in (("q", attn.W_Q, attn.b_Q), ("k", attn.W_K, attn.b_K), ("v", attn.W_V, attn.b_V))
        )
        q, k = norm(f"{here}.attn.q_norm", attn.q_norm, q), norm(f"{here}.attn.k_norm", attn.k_norm, k)
        if attn.rotary is not None:
            q, k = put("attn.hook_rot_q", rotated(attn.rotary, q)), put("attn.hook_rot_k", rotated(attn.rotary, k))
        k, v = (x.repeat(model.n_heads // model.n_kv_heads, axis=1) for x in (k, v))
        query, key, window = np.arange(seq)[:, None], np.arange(seq), model.windows[layer]
        allowed = (key <= query) | (not model.causal)
        allowed &= True if window is None else key > query - window
        scores = capped(np.einsum("qhd,khd->hqk", q, k) * float(attn.scale), attn.cap)
        scores = put("attn.hook_attn_scores", np.where(allowed, scores, -np.inf))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        pattern = put("attn.hook_pattern", weights / weights.sum(-1, keepdims=True))
        z = put("attn.hook_z", np.einsum("hqk,khd->qhd", pattern, v))
        out = put("attn.hook_result", np.einsum("shd,hdm->shm", z, array(attn.W_O))).sum(1) + array(attn.b_O)
        if block.ln1_post is not None:
            out = norm(f"{here}.ln1_post", block.ln1_post, put("attn.hook_out", out))
        resid = resid + put("hook_attn_out", out)
        if mlp is not None:
            read = found[f"{here}.hook_resid_pre"] if block.parallel else put("hook_resid_mid", resid)
            x, act = (
                put("mlp.hook_in", norm(f"{here}.ln2", block.ln2, read)),
                lambda x, mlp=mlp: array(mlp.act(jnp.asarray(x))),
            )
            linear = x @ array(mlp.W_in) + array(mlp.b_in)
            if hasattr(mlp, "W_gate"):
                gates = put("mlp.hook_pre", x @ array(mlp.W_gate) + array(mlp.b_gate))
                post = put("mlp.hook_pre_linear", linear) * put("mlp.hook_act_gate", act(gates))
            else:
                post = act(put("mlp.hook_pre", linear))
                put("mlp.hook_act_gate", post / linear)  # of activation functions that are 0 at 0
            out = put("mlp.hook_post", post) @ array(mlp.W_out) + array(mlp.b_out)
            if block.ln2_post is not None:
                out = norm(f"{here}.ln2_post", block.ln2_post, put("mlp.hook_out", out))
            resid = resid + put("hook_mlp_out", out)
        put("hook_resid_post", resid)
    logits = norm("ln_final", model.ln_final, resid) @ array(model.W_U) + array(model.b_U)
    found["logits"] = capped(logits, model.logit_cap)
    if model.logit_cap is not None:
        found["hook_logit_gate"] = found["logits"] / logits
    return found


def sizes_of(model: jc.Transformer, seq: int) -> dict[str, int]:
    """The length of each axis."""
    every = dict.fromkeys(("seq", "q_seq", "k_seq"), seq) | {"1": 1, "d_model": 16, "d_head": 6, "d_mlp": 24}
    vocabulary = dict.fromkeys(("d_vocab", "d_vocab_out"), model.W_U.shape[1])
    return every | vocabulary | {"head": model.n_heads, "kv_head": model.n_kv_heads}


@pytest.mark.parametrize("name", MODELS)
def test_every_site_holds_what_its_documentation_says(name):
    """The table has each kind of site with its axes, and the value of each site is what is said there."""
    model, tokens = model_named(name), tokens_for(model_named(name))
    _, cache = jc.run(model, tokens, record="all")
    want, rows, joint = forward(model, tokens), documented(), getattr(model.blocks[0].attn.q_norm, "joint", False)
    assert {str(site) for site in cache} == set(want)
    for site, value in cache.items():
        axes, holds = rows[str(site).removeprefix(f"blocks.{site.layer}.")]
        heads_as_one = joint and site.kind in (Kind.Q_SCALE, Kind.K_SCALE)
        sizes = sizes_of(model, 7) | ({"head": 1, "kv_head": 1} if heads_as_one else {})
        assert value.shape == tuple(sizes[axis] for axis in axes.split()), f"{site}: {axes}"
        assert len(holds) > 10
        assert_close(value, want[str(site)], mass=1e-3)


def test_the_documentation_has_a_row_for_each_kind_of_site():
    names = [str(Site(0 if kind.in_block else None, kind)).removeprefix("blocks.0.") for kind in Kind]
    assert list(documented()) == names


@pytest.mark.parametrize("name", MODELS)
def test_the_table_of_names_and_shapes_holds(name):
    model, seq = model_named(name), 5
    sizes = sizes_of(model, seq)
    shapes = site_shapes(model, seq)
    want = {hook: tuple(sizes[axis] for axis in axes.split()) for hook, axes in table(model).items()}
    assert {str(site): value.shape for site, value in shapes.items()} == want
    assert [str(site) for site in jc.sites(model)] == list(table(model))
    assert {value.dtype for value in shapes.values()} == {model.dtype}


@pytest.mark.parametrize("name", MODELS)
def test_order_is_the_order_of_execution(name):
    model = model_named(name)
    width = lambda site, value: value.size // value.shape[0]
    by_position = [Kind.EMBED, Kind.RESID_PRE, Kind.Q, Kind.Z, Kind.ATTN_OUT, Kind.MLP_POST, Kind.RESID_POST]
    saes = {
        site: jc.saes.Identity(width(site, value))
        for site, value in site_shapes(model, 7).items()
        if site.kind in by_position
    }
    seen = []

    def trace(model, tokens):
        tap = Tap(saes, {}, Everything())
        model(tokens, tap)
        seen.extend(tap.seen)
        return tap.cache

    jax.eval_shape(trace, model, tokens_for(model))
    assert seen == sorted(seen)
    assert {site for site in seen if site.part == Part.VALUE} == set(jc.sites(model))
    assert {site.value for site in seen if site.part != Part.VALUE} == set(saes)
    assert len(saes) >= 1 + 5 * model.n_layers


@pytest.mark.parametrize("site", ALL_SITES, ids=str)
def test_names_are_read_back(site):
    assert Site.parse(str(site)) == site
    assert Site.parse(site) is site
    assert pickle.loads(pickle.dumps(site)) == site


def test_names_are_distinct_and_order_is_total():
    assert len({str(site) for site in ALL_SITES}) == len(set(ALL_SITES)) == len(ALL_SITES)
    in_order = sorted(ALL_SITES)
    for a, b in itertools.pairwise(in_order):
        assert a < b
        assert not b < a
    assert in_order[0].kind == Kind.EMBED
    assert in_order[-1] == Site(None, Kind.LOGITS)
    with pytest.raises(TypeError, match="not supported between"):
        _ = ALL_SITES[0] < "hook_embed"


def test_names_are_those_of_transformer_lens_and_sae_lens():
    assert str(Site(3, Kind.ATTN_SCORES)) == "blocks.3.attn.hook_attn_scores"
    assert str(Site(None, Kind.FINAL_NORMALIZED)) == "ln_final.hook_normalized"
    assert str(Site(1, Kind.Z).acts) == "blocks.1.attn.hook_z.hook_sae_acts_post"
    assert str(Site(1, Kind.Z).error) == "blocks.1.attn.hook_z.hook_sae_error"
    assert Site(1, Kind.Z).acts.value == Site(1, Kind.Z)
    assert Site(1, Kind.Z).acts < Site(1, Kind.Z).error < Site(1, Kind.Z)


def test_shift_moves_what_is_in_a_block():
    assert Site(1, Kind.Q, Part.ERROR).offset_layers(2) == Site(3, Kind.Q, Part.ERROR)
    assert Site(None, Kind.LOGITS).offset_layers(2) == Site(None, Kind.LOGITS)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("blocks.3.hook_mlpout", "blocks.3.hook_mlp_out"),
        ("blocks.3.attn.hook_zz", "blocks.3.attn.hook_z"),
        ("hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("blocks.x.hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("blocks.-1.hook_resid_pre", "blocks.0.hook_resid_pre"),
        ("blocks.2.hook_embed", None),
        ("ln_final.hook_scales", "ln_final.hook_scale"),
        ("blocks.2.hook_mlp_out.hook_sae_act_post", "blocks.2.hook_mlp_out.hook_sae_acts_post"),
        ("unembed.hook_out", None),
        ("mlp_out", "blocks.0.hook_mlp_out"),
        ("blocks.", None),
        ("blocks.1", None),
        ("", None),
    ],
)
def test_unknown_names_say_the_nearest(name, nearest):
    with pytest.raises(ValueError, match="No site is called") as error:
        Site.parse(name)
    assert f"`{name}`" in str(error.value)
    assert ("Did you mean" in str(error.value)) != ("There are" in str(error.value))
    if nearest:
        assert str(error.value).endswith(f"Did you mean `{nearest}`?")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Site(None, Kind.MLP_OUT), ValueError, "MLP_OUT is in a block: give its layer, from 0; got layer None"),
        (lambda: Site(-1, Kind.MLP_OUT), ValueError, "give its layer, from 0; got layer -1"),
        (lambda: Site(0, Kind.LOGITS), ValueError, "LOGITS is outside the blocks: give layer None; got layer 0"),
        (lambda: Site(0, 18), TypeError, "expected a Kind, got 18"),
        (lambda: Site(Kind.MLP_OUT, 0), TypeError, "expected a Kind, got 0"),
        (lambda: Site(0, "hook_mlp_out"), TypeError, "expected a Kind, got 'hook_mlp_out'"),
        (lambda: Site(0, Kind.MLP_OUT, "acts"), TypeError, "expected a Part, got 'acts'"),
        (lambda: Site("0", Kind.MLP_OUT), TypeError, "expected an integer or None as the layer, got '0'"),
        (lambda: Site.parse(3), TypeError, "Expected a site or its name, got 3"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_misuse(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_mappings_come_in_any_order_and_by_name():
    late, early = Site(1, Kind.MLP_OUT), Site(0, Kind.Q)
    assert list(by_site({"blocks.1.hook_mlp_out": 1, early: 2}).items()) == [(early, 2), (late, 1)]
    with pytest.raises(ValueError, match="given twice"):
        by_site({late: 1, str(late): 2})


def test_did_you_mean_without_anything_known():
    assert did_you_mean("anything", []) == "There is none."


def test_sites_are_keys_of_a_pytree():
    cache = {Site(None, Kind.LOGITS): jnp.ones(2), Site(0, Kind.Q): jnp.zeros(2), Site(None, Kind.EMBED): jnp.ones(1)}
    assert list(jax.tree.map(lambda x: x, cache)) == sorted(cache)
