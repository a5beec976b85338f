"""Effects of attention heads: against runs with one vector changed, against a softmax for each key, and where gradients fail."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc.attribution._patterns import effects_of_keys
from jaxcirc.runs import _resume, _windows
from tests.helpers import assert_close, Chosen, make_model, MODELS, needs_x64, tokens_for
from tests.oracle import record


pytestmark = needs_x64
KINDS = {"q": Kind.Q, "k": Kind.K, "v": Kind.V, "z": Kind.Z}


def problem(name="gpt2", *, batch=2, seq=5, changed=1):
    model = MODELS[name](jax.random.key(3))
    clean = jnp.stack([tokens_for(model, seq, seed) for seed in range(batch)])
    corrupt = clean.at[:, changed].set((clean[:, changed] + 1) % model.d_vocab)
    return model, clean, corrupt, jc.LogitDiff(jnp.arange(batch), jnp.arange(batch) + 2)


def one(metric, i):
    return jax.tree.map(lambda x: x[i], metric)


@jax.jit
def metric_after(model, tokens, metric, edits):
    return metric(jc.run(model, tokens, edits=edits)[0])


@jax.jit
def gradient_at(like, model, tokens, metric, held):
    """The gradient of the metric with respect to what is added at the sites of `like`, at nothing, besides the edits of `held`."""
    value = lambda moves: metric_after(model, tokens, metric, {**held, **{s: jc.Add(x) for s, x in moves.items()}})
    return jax.grad(value)(jax.tree.map(jnp.zeros_like, like))


def differences(model, clean, corrupt):
    sites = [Site(layer, kind) for layer in range(model.n_layers) for kind in KINDS.values()]
    before, after = (jax.tree.map(np.asarray, record(model, tokens, {}, sites)) for tokens in (clean, corrupt))
    return {site: after[site] - before[site] for site in sites}


@pytest.mark.parametrize("name", MODELS)
def test_patching_is_a_run_with_one_vector_changed(name):
    # Two tokens differ, one of them where a window of three reaches from the end.
    model, clean, corrupt, metric = problem(name, changed=slice(1, 3))
    got = jc.head_effects(model, clean, corrupt, metric, method=jc.ExactPatching(tokens_at_once=35))
    compared = dict.fromkeys(KINDS, 0)
    for i in range(len(clean)):
        change = differences(model, clean[i], corrupt[i])
        nothing = {site: np.zeros(x.shape) for site, x in change.items()}
        after = lambda moves, i=i: metric_after(
            model, clean[i], one(metric, i), {site: jc.Add(jnp.asarray(x)) for site, x in moves.items()}
        )
        base = after(nothing)
        for part, layer, head, pos in itertools.product(KINDS, range(model.n_layers), range(2), (0, 1, 2, 4)):
            head = head if part in "kv" else head * (model.n_heads - 1)  # the first and the last
            site = Site(layer, KINDS[part])
            moves = {**nothing, site: np.zeros(change[site].shape)}
            moves[site][pos, head] = change[site][pos, head]
            want = float(after(moves) - base)
            assert float(getattr(got, part)[i, layer, head, pos]) == pytest.approx(want, abs=1e-10)
            compared[part] += abs(want) > 1e-4
    assert min(compared.values()) > 3, compared


@pytest.mark.parametrize("name", ["gpt-neo", "gemma3"])
def test_the_gradient_is_attribution_patching(name):
    model, clean, corrupt, metric = problem(name, changed=slice(1, 3))
    got = jc.head_effects(model, clean, corrupt, metric, method=jc.Gradient())
    for i in range(len(clean)):
        change = differences(model, clean[i], corrupt[i])
        gradient = gradient_at(change, model, clean[i], one(metric, i), {})
        for part, kind in KINDS.items():
            want = [
                (gradient[Site(layer, kind)] * change[Site(layer, kind)]).sum(-1).T for layer in range(model.n_layers)
            ]
            assert_close(getattr(got, part)[i], np.stack(want))
    assert_close(got.total, jc.head_effects(model, clean, corrupt, metric, method=jc.ExactPatching()).total)


@jax.jit
def patterns_after(model, tokens, moves):
    """The patterns of runs in which queries and keys move, each by its row of `moves`."""
    record = [Site(layer, Kind.PATTERN) for layer in range(model.n_layers)]
    one = lambda moves: jc.run(model, tokens, edits={s: jc.Add(x) for s, x in moves.items()}, record=record)[1]
    return jax.vmap(one)(moves)


@pytest.mark.parametrize(
    "name", ["gpt-neo", "no-norm-relu-bidirectional", "neox", "llama", "qwen3", "olmo2", "gemma2", "gemma3"]
)
def test_the_query_key_fix_moves_the_pattern_exactly(name):
    """The change of the pattern in a run with one query or key changed, times the gradient at the pattern."""
    model, clean, corrupt, metric = problem(name, changed=slice(1, 3))
    got = jc.head_effects(model, clean, corrupt, metric, method=jc.AtPStar())
    plain = jc.head_effects(model, clean, corrupt, metric, method=jc.Gradient())
    assert_close(got.v, plain.v)
    assert_close(got.z, plain.z)
    for part in ("q", "k"):
        assert float(jnp.abs(getattr(got, part) - getattr(plain, part)).max()) > 1e-3
    layers = range(model.n_layers)
    for i in range(len(clean)):
        change = differences(model, clean[i], corrupt[i])
        change = {site: x for site, x in change.items() if site.kind in (Kind.Q, Kind.K)}
        places = [(site, pos, head) for site, x in change.items() for pos, head in np.ndindex(x.shape[:2])]
        moves = {site: np.zeros((len(places) + 1, *x.shape)) for site, x in change.items()}  # the last is the clean run
        for row, (site, pos, head) in enumerate(places):
            moves[site][row, pos, head] = change[site][pos, head]
        pattern = patterns_after(model, clean[i], moves)
        nothing = {Site(layer, Kind.PATTERN): np.zeros((model.n_heads, 5, 5)) for layer in layers}
        slope = gradient_at(nothing, model, clean[i], one(metric, i), {})
        for row, (site, pos, head) in enumerate(places):
            there = Site(site.layer, Kind.PATTERN)
            want = float(np.sum(slope[there] * (pattern[there][row] - pattern[there][-1])))
            found = got.q if site.kind == Kind.Q else got.k
            assert float(found[i, site.layer, head, pos]) == pytest.approx(want, abs=1e-10)


def test_where_attention_is_saturated_the_gradient_is_blind_and_the_fix_is_not():
    """With one layer, no norm and no MLP the metric is linear in the pattern, so that the fix is exact."""
    model = make_model(jax.random.key(1), layers=1, norm="None", attn_only=True, scales=(8.0,))
    clean = tokens_for(model, 5)[None]
    given = model, clean, (clean + 1) % model.d_vocab, jc.LogitDiff(jnp.array([0]), jnp.array([2]))
    exact, fixed, plain = (
        jc.head_effects(*given, method=method) for method in (jc.ExactPatching(), jc.AtPStar(), jc.Gradient())
    )
    for part in ("q", "k"):
        assert_close(getattr(fixed, part), getattr(exact, part), mass=1.0)
        assert float(jnp.abs(getattr(plain, part)).max()) < 0.01 * float(jnp.abs(getattr(exact, part)).max())


def test_keys_keep_their_precision_where_one_takes_all():
    """In float32, a row whose entries differ by e^25: what the small ones become when the large one goes is not lost."""
    scores = jnp.zeros((2, 2, 5, 5)) + np.array([25.0, 0.0, -1.0, 0.5, -0.5])
    change = jnp.zeros((2, 2, 5, 5)).at[..., 0].set(-30.0)
    slope = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 5, 5)))
    exact = effects_of_keys(scores, change, slope)
    moved = jax.nn.softmax(scores + change) - jax.nn.softmax(scores)
    assert_close(exact[:, :, 0], jnp.einsum("wlhqk,lhqk->wlh", slope, moved))
    assert_close(effects_of_keys(*(x.astype(jnp.float32) for x in (scores, change, slope))), exact, tolerance=1e-5)


def test_dropping_a_layers_gradient_uncovers_what_cancels():
    """By its definition: for each layer a gradient with that layer's outputs detached, absolute values, their mean over the others."""
    model, clean, corrupt, metric = problem("gpt2-inverse-layer-scale")
    got = jc.head_effects(model, clean, corrupt, metric, method=jc.AtPStar(qk_fix=False, grad_drop=True))
    for i in range(2):
        change = differences(model, clean[i], corrupt[i])
        total = {part: 0.0 for part in KINDS}
        for dropped in range(model.n_layers):
            # Every layer can be detached, and one is: one program for all.
            held = {
                Site(layer, kind): Chosen(np.int32(layer == dropped), (jc.Detach(),))
                for layer in range(model.n_layers)
                for kind in (Kind.ATTN_OUT, Kind.MLP_OUT)
            }
            gradient = gradient_at(change, model, clean[i], one(metric, i), held)
            for part, kind in KINDS.items():
                effects = [
                    (gradient[Site(la, kind)] * change[Site(la, kind)]).sum(-1).T for la in range(model.n_layers)
                ]
                total[part] = total[part] + np.abs(np.stack(effects))
        for part in KINDS:
            assert_close(getattr(got, part)[i], total[part] / (model.n_layers - 1))
            assert (getattr(got, part) >= 0).all()


def test_what_two_ways_cancel_has_no_gradient_and_a_size_by_grad_drop():
    """The metric is chosen so that what a head does to it directly and through the next layer sum to nothing."""
    model, clean, corrupt, _ = problem("attention-only")
    site, position, head = Site(0, Kind.Z), 4, 1  # where the metric is read, so that there is a direct way
    vector = np.zeros((5, model.n_heads, model.d_head))
    vector[position, head] = differences(model, clean[0], corrupt[0])[site][position, head]
    both, direct = (np.asarray(slope_of_logits(model, clean[0], vector, np.int32(held))) for held in (False, True))
    w = direct - both * (direct @ both) / (both @ both)
    w = w / (direct @ w)
    metric = lambda logits: logits[-1] @ w
    effect = lambda method: float(jc.head_effects(model, clean, corrupt, metric, method=method).z[0, 0, head, position])
    assert effect(jc.AtPStar()) == pytest.approx(0, abs=1e-10)
    assert effect(jc.Gradient()) == pytest.approx(0, abs=1e-10)
    assert effect(jc.AtPStar(grad_drop=True)) == pytest.approx(1)


@jax.jit
def slope_of_logits(model, tokens, vector, held):
    """How the last logits move when `vector` is added to the first layer's `z`; where `held`, not through the next layer."""

    def logits(t):
        edits = {Site(0, Kind.Z): jc.Add(t * vector), Site(1, Kind.ATTN_OUT): Chosen(held, (jc.Detach(),))}
        return jc.run(model, tokens, edits=edits)[0][-1]

    return jax.jacfwd(logits)(0.0)


@pytest.mark.parametrize(
    "name", ["gpt-neo", "no-norm-relu-bidirectional", "attention-only", "parallel", "llama", "gemma3"]
)
@pytest.mark.parametrize("position", [-1, 3])
def test_windows_of_positions_change_nothing(name, position, monkeypatch):
    """However many sizes there are; where nothing behind the metric's position can matter, nothing is run.

    The models are those that differ in what a run of some positions does: which keys are seen, rotation by position, sublayers side by
    side or absent, norms behind. That patching is a run, in windows as they come, is compared above for every model.
    """
    model, clean, corrupt, metric = problem(name, changed=slice(1, None))
    metric = jc.LogitDiff(metric.answer, metric.foil, jnp.array([position, -1]))
    saes = {site: jc.saes.Identity(16) for site in ("blocks.0.hook_resid_pre", "blocks.1.hook_attn_out")}
    heads, nodes, positions = {}, {}, {}
    for programs in (np.inf, 1e-9):
        monkeypatch.setattr(_windows, "PROGRAMS", programs)
        with counting_positions(monkeypatch) as run:
            heads[programs] = jc.head_effects(model, clean, corrupt, metric, method=jc.ExactPatching(tokens_at_once=35))
            nodes[programs] = jc.node_effects(model, saes, clean, corrupt, metric, method=jc.ExactPatching(64))
        positions[programs] = sum(run)
    for part in KINDS:
        assert_close(getattr(heads[1e-9], part), getattr(heads[np.inf], part))
    for site in saes:
        assert_close(nodes[1e-9].nodes(site), nodes[np.inf].nodes(site))
    if model.causal:
        assert positions[1e-9] < 0.8 * positions[np.inf]
        if position == 3:
            assert not any(getattr(heads[1e-9], part)[0, ..., 4:].any() for part in KINDS)


@contextlib.contextmanager
def counting_positions(monkeypatch):
    """A list of how many positions of variants each call runs through a block."""
    run = []

    def counted(function):
        def call(block, masks, rows, resid, *more, **kwargs):
            out = function(block, masks, rows, resid, *more, **kwargs)
            run.append(jax.tree.leaves(out)[0][..., 0].size)
            return out

        return call

    with monkeypatch.context() as patch:
        for name in ("_through", "_where_read"):
            patch.setattr(_resume, name, counted(getattr(_resume, name)))
        yield run


@pytest.mark.parametrize(
    ("method", "name"),
    [(jc.AtPStar(), "gpt2"), (jc.ExactPatching(), "gpt-neo"), (jc.AtPStar(), "gemma2"), (jc.ExactPatching(), "olmo2")],
)
def test_padding_and_the_batch_change_nothing(method, name):
    model, clean, corrupt, metric = problem(name, changed=slice(1, 3))
    want = jc.head_effects(model, clean, corrupt, metric, method=method)
    pad = lambda tokens: jnp.pad(tokens, ((0, 0), (0, 2)))
    mask = jnp.arange(7)[None] < jnp.array([5, 5])[:, None]
    padded = jc.head_effects(
        model, pad(clean), pad(corrupt), jc.LogitDiff(metric.answer, metric.foil, 4), method=method, mask=mask
    )
    for part in KINDS:
        assert_close(getattr(padded, part)[..., :5], getattr(want, part))
        assert not getattr(padded, part)[..., 5:].any()
    left = lambda tokens: jnp.pad(tokens, ((0, 0), (2, 0)))
    behind = jc.head_effects(model, left(clean), left(corrupt), metric, method=method, mask=mask[:, ::-1])
    for part in KINDS:
        assert_close(getattr(behind, part)[..., 2:], getattr(want, part))
        assert not getattr(behind, part)[..., :2].any()
    alone = jc.head_effects(
        model, clean[1:], corrupt[1:], jc.LogitDiff(metric.answer[1:], metric.foil[1:]), method=method
    )
    assert_close(alone.k[0], want.k[1])


def test_zero_baseline_and_what_is_refused(untyped):
    model, clean, corrupt, metric = problem("gpt2")
    zero = jc.head_effects(model, clean, None, metric, method=jc.ExactPatching())
    assert_close(zero.total, -zero.clean)
    off = metric_after(model, clean[0], one(metric, 0), {Site(1, Kind.Z): jc.Apply(lambda z: z.at[4, 1].set(0))})
    assert float(zero.z[0, 1, 1, 4]) == pytest.approx(float(off - zero.clean[0]), abs=1e-10)
    with pytest.raises(TypeError, match=r"expected one of jc.AtPStar\(\), .* got IntegratedGradients"):
        jc.head_effects(model, clean, corrupt, metric, method=jc.IntegratedGradients())
    single = make_model(jax.random.key(0), layers=1)
    with pytest.raises(ValueError, match=r"random has a single layer. Use jc.AtPStar\(\)"):
        jc.head_effects(single, clean, corrupt, metric, method=jc.AtPStar(grad_drop=True))
    with pytest.raises(ValueError, match=r"ExactPatching: tokens_at_once is how many tokens .*, at least 1; got 0"):
        jc.ExactPatching(tokens_at_once=0)
    with pytest.raises(ValueError, match="Clean and corrupt prompts come in pairs"):
        jc.head_effects(model, clean, corrupt[:, :3], metric)
