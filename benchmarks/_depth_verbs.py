"""What is compiled for models of many blocks: verbs on a random model of Llama's kind, small in all but the number of its blocks."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc.parts import Attention, Block, GatedMLP, make_rotary, RMSNorm, silu

from ._growth_verbs import Point, Verb
from ._problems import EPS, make_items
from ._timing import Run


HEADS, KV_HEADS, VOCABULARY = 4, 2, 64
FIRST = "blocks.0.hook_resid_pre"
ITEMS = 64  # rows and columns of a contraction


def make_model(point: Point) -> jc.Transformer:
    """RMS norms, rotary positions, heads in groups that share keys and values, and gated MLPs."""
    rng, d_model = np.random.default_rng(0), point.width
    d_head, d_mlp = d_model // HEADS, 3 * d_model
    random = lambda *shape: jnp.asarray((rng.standard_normal(shape) / shape[-2] ** 0.5).astype(np.float32))
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
    frequencies = 1e4 ** (-np.arange(d_head // 2) / (d_head // 2))

    def norm(*sites: jc.Kind) -> RMSNorm:
        scale, value = sites
        return RMSNorm(1 + random(1, d_model)[0] / 4, EPS, (scale, value))

    def block() -> Block:
        into = lambda n: (random(n, d_model, d_head), zeros(n, d_head))
        scale, rotary = jnp.asarray(d_head**-0.5, jnp.float32), make_rotary(frequencies, np.dtype(np.float32))
        keys = *into(KV_HEADS), *into(KV_HEADS)
        attn = Attention(*into(HEADS), *keys, random(HEADS, d_head, d_model), zeros(d_model), scale, rotary=rotary)
        hidden = random(d_model, d_mlp), zeros(d_mlp)
        mlp = GatedMLP(*hidden, random(d_model, d_mlp), zeros(d_mlp), random(d_mlp, d_model), zeros(d_model), silu)
        ln1, ln2 = norm(jc.Kind.LN1_SCALE, jc.Kind.LN1_NORMALIZED), norm(jc.Kind.LN2_SCALE, jc.Kind.LN2_NORMALIZED)
        return Block(ln1, attn, ln2, mlp)

    return jc.Transformer(
        W_E=random(VOCABULARY, d_model) * d_model**0.5,
        W_pos=None,
        blocks=tuple(block() for _ in range(point.blocks)),
        ln_final=norm(jc.Kind.FINAL_SCALE, jc.Kind.FINAL_NORMALIZED),
        untied_W_U=None,
        b_U=zeros(VOCABULARY),
        windows=(None,) * point.blocks,
        causal=True,
        architecture="llama",
        name="random",
        context=point.seq,
    )


def make_tokens(point: Point) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).integers(0, VOCABULARY, point.seq), jnp.int32)


def make_jacobian(point: Point) -> jc.EdgeJacobian:
    """Of what leaves the last block with respect to what enters the first."""
    last = f"blocks.{point.blocks - 1}.hook_resid_post"
    return jc.edge(make_model(point), make_tokens(point), FIRST, last)


def logits(point: Point) -> Run:
    model, tokens = make_model(point), make_tokens(point)
    run = jax.jit(lambda model, tokens: jc.run(model, tokens)[0])
    return lambda: run(model, tokens)


def gradient(point: Point) -> Run:
    model, tokens = make_model(point), make_tokens(point)
    step, first, metric = jnp.zeros((point.seq, point.width), jnp.float32), jc.Site.parse(FIRST), jc.LogitDiff(0, 1)
    value = lambda step, model: metric(jc.run(model, tokens, edits={first: jc.Add(step)})[0])
    compiled = jax.jit(jax.grad(value))
    return lambda: compiled(step, model)


def by_blocks(point: Point) -> Run:
    model, tokens = make_model(point), make_tokens(point)
    return lambda: jc.run(model, tokens)[0]


def one_by_one(point: Point) -> Run:
    model, tokens = make_model(point), make_tokens(point)
    nothing = jc.Apply(lambda x: x)
    edits = {
        site: nothing for site in jc.sites(model) if site.kind in (jc.Kind.EMBED, jc.Kind.RESID_PRE, jc.Kind.LOGITS)
    }
    return lambda: jc.run(model, tokens, edits=edits)[0]


def jacobian(point: Point) -> Run:
    model, tokens, last = make_model(point), make_tokens(point), f"blocks.{point.blocks - 1}.hook_resid_post"
    return lambda: jc.edge(model, tokens, FIRST, last).product


def image(point: Point) -> Run:
    J = make_jacobian(point)
    tangent = jnp.asarray(np.random.default_rng(2).standard_normal(J.source_shape), jnp.float32)
    return lambda: J.mv(tangent)


def contraction(point: Point) -> Run:
    J = make_jacobian(point)
    items = [jnp.asarray(x) for x in make_items(d_model=point.width, seq=point.seq, m=ITEMS, k=ITEMS)]
    return lambda: J.contract(*items)


def edges(point: Point) -> Run:
    """From the first block's attention to its MLP, and from both to the metric through all blocks behind them."""
    return edges_between(point, [f"blocks.0.hook_{name}" for name in ("attn_out", "mlp_out")], threshold=0.0)


def edges_across(point: Point) -> Run:
    """Between the outputs of all MLPs, each with every one behind it, into the few strongest nodes."""
    return edges_between(point, [f"blocks.{layer}.hook_mlp_out" for layer in range(point.blocks)], strongest=ITEMS)


def edges_between(point: Point, sites: list[str], *, threshold: float = 0.0, strongest: int | None = None) -> Run:
    """With a random dictionary at each of the sites; into the nodes above a threshold, or so many."""
    rng, model, clean = np.random.default_rng(3), make_model(point), make_tokens(point)[None]
    random = lambda *shape: jnp.asarray((rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32))
    d_model = point.width
    make = lambda: jc.saes.SAE(
        W_enc=random(d_model, ITEMS),
        b_enc=jnp.zeros(ITEMS, jnp.float32),
        W_dec=random(ITEMS, d_model),
        b_dec=jnp.zeros(d_model, jnp.float32),
        activation=jc.saes.ReLU(),
    )
    saes = {site: make() for site in sites}
    pairs = clean, (clean + 1) % VOCABULARY, jc.LogitDiff(jnp.asarray([0]), jnp.asarray([1]))
    nodes = jc.node_effects(model, saes, *pairs, method=jc.Gradient())
    if strongest is not None:
        sizes = np.concatenate([np.abs(np.asarray(nodes.nodes(site))).ravel() for site in nodes.listed])
        threshold = float(np.sort(sizes)[-1 - strongest])
    run = lambda: jc.edge_effects(model, saes, *pairs, nodes, threshold=threshold)
    return lambda: [np.asarray(values) for values in run().to_metric.values()]


DEPTH_VERBS: dict[str, Verb] = {
    "jax.jit of jc.run": Verb(logits, False, ()),
    "jax.jit of its gradient": Verb(gradient, False, ()),
    "jc.run": Verb(by_blocks, False, ()),
    "jc.run, a function as an edit in each block": Verb(one_by_one, False, ()),
    "jc.edge": Verb(jacobian, False, ()),
    "J.mv": Verb(image, False, ()),
    f"J.contract, {ITEMS} x {ITEMS}": Verb(contraction, False, ()),
    "jc.edge_effects in the first block": Verb(edges, False, ()),
    "jc.edge_effects between all MLPs": Verb(edges_across, False, ()),
}
