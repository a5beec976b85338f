"""Causal scrubbing: against explicit runs, enumeration, compiled programs with a known circuit, and what it refuses."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Claim, Conditional, Exact, Kind, Site, Unconditional
from jaxcirc.scrubbing import Fixed, Pool, Shared, UnconditionalTogether
from jaxcirc.scrubbing._data import Data
from jaxcirc.scrubbing._samplers import Words

from .helpers import (
    assert_close,
    counting_calls,
    counting_programs,
    make_model,
    model_named,
    MODELS,
    needs_real,
    REAL,
)


KEY = jax.random.key(3)
COUNT, SEQ = 4, 6


def data_of(model, count=COUNT, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.d_vocab, (count, SEQ))
    answers = rng.permuted(np.tile(np.arange(5), (count, 1)), axis=1)
    return jnp.asarray(tokens), jc.LogitDiff(answers[:, 0], answers[:, 1])


def metric_of(model, tokens, metric):
    return jax.vmap(lambda tokens, metric: metric(jc.run(model, tokens)[0]))(tokens, metric)


def every_kind(sampler, others, paths="direct"):
    """A tree with a head read through each input, an MLP where the model has one, the embedding, and a head in two branches."""

    def tree(model):
        claim = lambda name, *children, **more: Claim(name, sampler, children=children, others=others, **more)
        below = [claim("a0.h0", through="q", paths=paths), claim("a0.h1", claim("embed"), through="v", paths=paths)]
        branches = [claim("a1.h0", *below, claim("embed", through="k"), paths=paths), claim("a0.h1", paths=paths)]
        if model.blocks[0].mlp is not None:
            reads = "embed" if model.blocks[0].parallel else "a0.h1"
            branches.append(claim("m0", claim(reads), paths=paths))
            branches.append(claim("m1", claim("m0"), claim("a0.h0"), positions=(2, -1), paths=paths))
        return claim("logits", *branches, paths=paths)

    return tree


@pytest.mark.parametrize("name", MODELS)
def test_exact_everywhere_is_the_clean_run(name):
    """By number, where nothing is computed anew, and by data that are equal under two numbers, where everything is."""
    model = model_named(name)
    tokens, metric = data_of(model)
    want = np.asarray(metric_of(model, tokens, metric))
    found = jc.scrub(model, every_kind(Exact(), Exact())(model), tokens, metric, KEY, samples=2)
    assert_close(found.reference, want)
    assert_close(found.values, np.stack([want, want]))
    assert found.runs == 0
    assert found.equal.all()
    twice, of_twice = jnp.concatenate([tokens] * 2), jax.tree.map(lambda x: jnp.concatenate([x] * 2), metric)
    same = Conditional(np.tile(np.arange(COUNT), 2))
    for paths in ("direct", "any"):
        found = jc.scrub(model, every_kind(same, same, paths)(model), twice, of_twice, KEY, samples=2)
        assert found.runs > 10
        assert_close(found.values, np.tile(want, (2, 2)))


@pytest.mark.parametrize("name", ["gpt2", "llama", "parallel", "gemma2"])
def test_without_children_all_is_another_run(name):
    model = model_named(name)
    tokens, metric = data_of(model)
    found = jc.scrub(model, Claim("logits", Unconditional()), tokens, metric, KEY, samples=3)
    pairs = np.stack([metric_of(model, jnp.stack([row] * COUNT), metric) for row in tokens])  # [datum example]
    for values in (found.values, found.baseline):
        data = np.abs(pairs[:, None] - values).argmin(0)
        assert_close(values, pairs[data, np.arange(COUNT)])
        assert len(np.unique(data)) > 1
    assert (found.values != found.baseline).any()
    assert found.claims[0].itself == pytest.approx(found.equal.mean())
    assert found.runs == 0


class Oracle:
    """Claims whose samplers are all `Fixed`, computed one after the other by runs with edits."""

    def __init__(self, model, tokens):
        self.model, self.tokens = model, tokens

    def run(self, datum, record=(), edits=None):
        logits, found = jc.run(self.model, self.tokens[datum], record=[*record], edits=edits or {})
        return logits, {site: np.asarray(found[site]) for site in record}

    def place(self, name):
        """Where it reads, and where it writes."""
        if name == "logits":
            return Site(self.model.n_layers - 1, Kind.RESID_POST), None
        if name == "embed":
            return None, Site(None, Kind.EMBED)
        layer = int(name[1:].partition(".")[0])
        if name[0] == "m":
            return Site(layer, self.model.blocks[layer].mlp_reads), Site(layer, Kind.MLP_OUT)
        return Site(layer, Kind.RESID_PRE), Site(layer, Kind.RESULT)

    def written(self, name, found):
        out = found[self.place(name)[1]]
        if name == "embed" and (position := Site(None, Kind.POS_EMBED)) in found:
            return out + found[position]
        return out[:, int(name.partition(".h")[2])] if ".h" in name else out

    def sites(self, name):
        positions = [Site(None, Kind.POS_EMBED)] if name == "embed" and self.model.W_pos is not None else []
        return [self.place(name)[1], *positions]

    def value(self, claim, finish=None):
        """What the component writes `[seq d_model]`; of the logits `finish(logits)`."""
        if not claim.children:
            logits, found = self.run(claim.sampler.datum, self.sites(claim.name) if claim.name != "logits" else ())
            return finish(logits) if finish else self.written(claim.name, found)
        others, (cut, site) = claim.others.datum, self.place(claim.name)
        if ".h" not in claim.name:
            edits = {cut: jc.Replace(jnp.asarray(self.read(claim, "in", cut, others)))}
            if finish:
                return finish(self.run(others, edits=edits)[0])
            return self.written(claim.name, self.run(others, [site], edits)[1])
        head, edits = int(claim.name.partition(".h")[2]), {}
        for part, kind in {"q": Kind.Q, "k": Kind.K, "v": Kind.V}.items():
            at = Site(cut.layer, kind)
            edit = {cut: jc.Replace(jnp.asarray(self.read(claim, part, cut, others)))}
            (plain,), (moved,) = (self.run(others, [at], e)[1].values() for e in ({}, edit))
            mine, plain = head * plain.shape[1] // self.model.n_heads, plain.copy()
            plain[:, mine] = moved[:, mine]
            edits[at] = jc.Replace(jnp.asarray(plain))
        return self.written(claim.name, self.run(others, [site], edits)[1])

    def read(self, claim, part, cut, others):
        feeding = [child for child in claim.children if part == "in" or child.through in (None, part)]
        resid = self.run(others, [cut])[1][cut].copy()
        edits = {}
        for child in feeding:
            at = (
                np.ones(SEQ, bool)
                if child.positions is None
                else np.isin(np.arange(SEQ) % SEQ, np.array(child.positions) % SEQ)
            )
            own, value = self.written(child.name, self.run(others, self.sites(child.name))[1]), self.value(child)
            resid += np.where(at[:, None], value - own, 0)
            edits.setdefault(self.place(child.name)[1], []).append((child.name, value, at))
        if claim.paths == "direct":
            return resid
        by_site = {site: jc.Apply(self.putting(puts, others)) for site, puts in edits.items()}
        return self.run(others, [cut], by_site)[1][cut]

    def putting(self, puts, others):
        def put(x):
            for name, value, at in puts:
                if name == "embed" and self.model.W_pos is not None:
                    value = value - self.run(others, self.sites("embed"))[1][Site(None, Kind.POS_EMBED)]
                if ".h" in name:
                    head = int(name.partition(".h")[2])
                    x = x.at[:, head].set(jnp.where(at[:, None], value, x[:, head]))
                else:
                    x = jnp.where(at[:, None], value, x)
            return x

        return put


@pytest.mark.parametrize("paths", ["direct", "any"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "parallel", "attention-only", "qwen3", "gpt-neo"])
def test_equals_explicit_runs(name, paths):
    """Each claim has a datum of its own, and the others one of their own."""
    model = model_named(name)
    tokens, metric = data_of(model)
    number = itertools.count(1)

    def fixed(claim):
        draw = lambda: Fixed(next(number) * 7 % COUNT)
        below = [fixed(child) for child in claim.children]
        more = {"through": claim.through, "positions": claim.positions, "paths": claim.paths}
        return Claim(claim.name, draw(), others=draw(), children=below, **more)

    tree = fixed(every_kind(Exact(), Exact(), paths)(model))
    found = jc.scrub(model, tree, tokens, metric, KEY, samples=1)
    oracle = Oracle(model, tokens)
    want = [oracle.value(tree, lambda logits, one=one: one(logits)) for one in _each(metric)]
    assert_close(found.values[0], np.array(want), tolerance=None if jax.config.jax_enable_x64 else 1e-4)
    assert found.runs == sum(bool(claim.children) for _, claim in tree.walk()) - 1 > 1


def _each(metric):
    return [jax.tree.map(lambda x, i=i: x[i], metric) for i in range(COUNT)]


def test_a_head_that_depends_on_nothing_is_an_edge_patched():
    model = model_named("gpt2")
    tokens, metric = data_of(model)
    graph, other = jc.component_graph(model), 2
    resampled = Claim("a0.h1", Fixed(other))
    edge = Claim("logits", Exact(), others=Exact(), children=[resampled])
    found = jc.scrub(model, edge, tokens, metric, KEY, samples=1)
    corrupt = jnp.stack([tokens[other]] * COUNT)
    patched = lambda name: jc.patch_edges(
        model, tokens, corrupt, metric, graph.edges & ~graph.mask([name]), graph=graph
    )
    assert_close(found.values[0], patched("a0.h1->logits"))
    through = Claim("a1.h0", Exact(), others=Exact(), children=[Claim("a0.h1", Fixed(other), through="q")])
    by_any = Claim("logits", Exact(), others=Exact(), children=[through], paths="any")
    found = jc.scrub(model, by_any, tokens, metric, KEY, samples=1)
    assert_close(found.values[0], patched("a0.h1->a1.h0.q"))
    assert found.equal[0].tolist() == [i == other for i in range(COUNT)]


def test_samples_converge_to_the_enumeration():
    model = model_named("gpt2")
    tokens, metric = data_of(model)

    def tree(datum, others, below):
        branch = Claim("a1.h1", Exact(), others=others, children=[Claim("m0", below, through="k")])
        return Claim("logits", Exact(), others=Exact(), children=[branch, Claim("a1.h0", datum)])

    kinds = np.array([0, 1, 0, 1])
    each = {rows: [] for rows in itertools.product(range(COUNT), range(COUNT), (0, 1))}
    for datum, others, which in each:
        below = Fixed(kinds + 2 * which)
        each[datum, others, which] = jc.scrub(
            model, tree(Fixed(datum), Fixed(others), below), tokens, metric, KEY, samples=1
        ).values[0]
    exact = np.mean(list(each.values()), axis=0)  # [example]
    drawn = tree(Unconditional(), Unconditional(), Conditional(kinds))
    found = jc.scrub(model, drawn, tokens, metric, KEY, samples=400)
    assert abs(found.mean - exact.mean()) < 2 * found.standard_error
    of_example = found.values.std(axis=0, ddof=1) / 20
    assert (np.abs(found.values.mean(axis=0) - exact) < 3.5 * of_example).all()
    assert found.standard_error == pytest.approx(np.sqrt((of_example**2).sum()) / COUNT, rel=0.1)
    possible = np.stack(list(each.values()))
    assert np.abs(found.values[:, None] - possible).min(axis=1).max() < (1e-10 if jax.config.jax_enable_x64 else 1e-4)


def test_the_same_key_gives_the_same_and_no_draw_depends_on_other_claims():
    model = model_named("gpt2")
    tokens, metric = data_of(model, 8)
    one, two = (Claim(name, Unconditional()) for name in ("a0.h1", "m1"))
    tree = lambda *children: Claim("logits", Exact(), others=Exact(), children=children)
    both = jc.scrub(model, tree(one, two), tokens, metric, KEY, samples=4)
    again = jc.scrub(model, tree(two, one), tokens, metric, KEY, samples=4)
    assert_close(again.values, both.values, tolerance=1e-6)
    alone = jc.scrub(model, tree(one), tokens, metric, KEY, samples=4)
    assert alone.claims[1] == both.claims[1]
    other = jc.scrub(model, tree(one, two), tokens, metric, jax.random.key(4), samples=4)
    assert np.abs(other.values - both.values).max() > 1e-3
    small = jc.scrub(model, tree(one, two), tokens, metric, KEY, samples=4, budget=1)
    assert_close(small.values, both.values, tolerance=1e-6)


def test_equal_subtrees_run_once():
    """Fifty draws for each of four examples come upon all twelve pairs of different data, and each pair is run once."""
    model = model_named("gpt2-inverse-layer-scale")
    tokens, metric = data_of(model)
    exact = lambda name, *children: Claim(name, Exact(), others=Exact(), children=children)
    branch = lambda draws: exact("a1.h0", Claim("a0.h0", draws))
    runs = lambda *branches: jc.scrub(model, exact("logits", *branches), tokens, metric, KEY, samples=50).runs
    pairs = COUNT * (COUNT - 1)
    assert runs(branch(Unconditional())) == pairs
    assert runs(branch(Unconditional()), exact("m2", branch(Unconditional()))) == 2 * pairs
    assert runs(branch(UnconditionalTogether()), exact("a2.h1", branch(UnconditionalTogether()))) == 2 * pairs
    both = exact("m2", Claim("a0.h0", Shared(Unconditional(), "x")), Claim("a1.h1", Shared(Unconditional(), "x")))
    assert runs(both) == pairs
    apart = exact("m2", Claim("a0.h0", Unconditional()), Claim("a1.h1", Unconditional()))
    assert runs(apart) > 2 * pairs


def test_layers_and_heads_share_programs():
    model = make_model(jax.random.key(0), layers=4)
    tokens, metric = data_of(model)

    def scrub(low, high, paths):
        below = [Claim(f"a{low}.h1", Unconditional(), through="q"), Claim(f"m{low}", Unconditional())]
        middle = Claim(f"a{high}.h0", Unconditional(), children=below, paths=paths)
        late = Claim(f"m{high}", Unconditional(), children=[Claim(f"a{high}.h1", Unconditional())], paths=paths)
        tree = Claim("logits", Exact(), children=[middle, late], paths=paths)
        return jc.scrub(model, tree, tokens, metric, KEY, samples=16)

    for paths in ("direct", "any"):
        with counting_programs() as first:
            scrub(0, 1, paths)
        with counting_programs() as second:
            scrub(1, 3, paths)
        assert len(first) < 40
        assert second == []


def test_each_datum_is_run_once():
    model = model_named("gpt2")
    tokens, metric = data_of(model)
    with counting_calls(type(model.blocks[0].attn), "__call__") as traced:
        jc.scrub(model, every_kind(Unconditional(), Unconditional())(model), tokens, metric, KEY, samples=3)
    again = jc.scrub(model, every_kind(Unconditional(), Unconditional())(model), tokens, metric, KEY, samples=3)
    with counting_calls(type(model.blocks[0].attn), "__call__") as retraced:
        other = every_kind(Unconditional(), Exact())(model)
        found = jc.scrub(model, other, tokens, metric, KEY, samples=3)
    assert len(traced) <= 6
    assert len(retraced) <= 3
    assert found.runs < again.runs


def ioi_like(count=12, seed=0):
    """Prompts of an alphabet: two names in one of two orders, one of them again, and an end."""
    rng = np.random.default_rng(seed)
    names = np.array([rng.permutation(5)[:2] for _ in range(count)])
    order = np.arange(count) % 2
    io, s = names.T
    clean = np.stack(
        [np.full(count, 9), np.where(order, s, io), np.where(order, io, s), np.full(count, 8), s, np.full(count, 7)]
    )
    positions = {"IO": 1 + order, "S1": 2 - order, "S2": np.full(count, 4), "end": np.full(count, 5)}
    positions = {name: jnp.asarray(value, jnp.int32) for name, value in positions.items()}
    clean, io, s = (jnp.asarray(x, jnp.int32) for x in (clean.T, io, s))
    return jc.data.Prompts(clean, clean, io, s, positions)


def drawn_by(sampler, prompts, samples=200):
    """The data that take the place of each, found by a metric that tells them apart."""
    data = Data(np.asarray(prompts.clean), np.ones(prompts.clean.shape, bool), prompts)
    rows = np.broadcast_to(np.arange(len(prompts)), (samples, len(prompts)))
    return sampler.draw(Words(KEY, "here", rows.shape), rows, data)


def test_conditional_draws_are_uniform_over_the_class():
    prompts = ioi_like(60)
    clean, s2 = np.asarray(prompts.clean), np.asarray(prompts.foil)
    order = np.asarray(prompts.positions["IO"])
    same = {
        "S2": s2[:, None] == s2,
        "answer": np.asarray(prompts.answer)[:, None] == np.asarray(prompts.answer),
        "IO.position": order[:, None] == order,
        ("S2", "IO.position"): (s2[:, None] == s2) & (order[:, None] == order),
        1: clean[:, 1, None] == clean[:, 1],
    }
    for of, wanted in same.items():
        drawn = drawn_by(Conditional(of), prompts)
        assert wanted[np.arange(60), drawn].all(), of
        for example in (0, 7):
            count = np.bincount(drawn[:, example], minlength=60)[wanted[example]]
            expected = 200 / len(count)
            assert (np.abs(count - expected) < 5 * np.sqrt(expected)).all()
    functions = [lambda prompt: int(prompt.clean[prompt.positions["S2"]]), lambda prompt: prompt.clean[4:5], s2]
    for of in functions:
        assert np.array_equal(drawn_by(Conditional(of), prompts), drawn_by(Conditional("S2"), prompts))


def test_draws_that_examples_share():
    prompts = ioi_like(12)
    together = drawn_by(UnconditionalTogether(), prompts)
    assert (together == together[:, :1]).all()
    assert len(np.unique(together)) == 12
    pool = drawn_by(Pool(3), prompts)
    sizes = [len(np.unique(sample)) for sample in pool]
    assert max(sizes) == 3
    assert len(np.unique(pool)) == 12
    assert drawn_by(Fixed(3), prompts)[5].tolist() == [3] * 12
    assert drawn_by(Fixed(np.arange(12)[::-1]), prompts)[0].tolist() == list(range(12))[::-1]
    assert (drawn_by(Exact(), prompts) == np.arange(12)).all()


def test_prompts_with_names_for_positions():
    """At the positions where the example has them, and there alone."""
    model = model_named("gpt2")
    prompts = ioi_like(4)
    tree = lambda positions: Claim(
        "logits", Exact(), others=Exact(), children=[Claim("m1", Fixed(1), positions=positions)], paths="any"
    )
    run = lambda positions: jc.scrub(model, tree(positions), prompts, prompts.metric(), KEY, samples=1).values[0]
    assert_close(run(("S2", "end")), run((4, -1)))
    assert_close(run(tuple(range(6))), run(None))
    of_each = np.where(np.asarray(prompts.positions["IO"]) == 1, run(1), run(2))
    assert_close(run("IO"), of_each)
    from_end = dataclasses.replace(prompts, positions=prompts.positions | {"end": jnp.full(4, -1)})
    assert_close(jc.scrub(model, tree("end"), from_end, prompts.metric(), KEY, samples=1).values[0], run(-1))
    assert np.abs(run(-1) - run(1)).max() > 1e-3


def test_prompts_of_several_lengths_resample_among_themselves():
    model = model_named("gpt2")
    tokens, metric = data_of(model, 8)
    mask = np.ones(tokens.shape, bool)
    mask[::2, 4:] = False
    metric = jc.LogitDiff(metric.answer, metric.foil, position=mask.sum(1) - 1)
    found = jc.scrub(model, Claim("logits", Unconditional()), tokens, metric, KEY, mask=jnp.asarray(mask), samples=20)
    short = jax.tree.map(lambda x: x[::2], metric)
    pairs = np.stack([metric_of(model, jnp.stack([row] * 4), short) for row in tokens[::2, :4]])
    assert np.abs(found.values[:, None, ::2] - pairs).min(1).max() < 1e-4
    assert found.claims[0].data == 8


def test_what_a_result_says():
    model = model_named("gpt2")
    tokens, metric = data_of(model)
    found = jc.scrub(model, Claim("logits", Unconditional()), tokens, metric, KEY, samples=50)
    assert abs(found.recovered) < 3 * found.recovered_standard_error
    exact = jc.scrub(model, Claim("logits", Exact()), tokens, metric, KEY, samples=5)
    assert exact.recovered == pytest.approx(1)
    assert exact.standard_error == pytest.approx(0, abs=1e-6)
    assert list(exact.table().columns) == ["path", "data", "itself", "equal", "values"]
    assert exact.claims[0] == ("logits", COUNT, 1.0, 1.0, COUNT)
    one = jc.scrub(model, Claim("logits", Unconditional()), tokens, metric, KEY, samples=1)
    assert np.isnan(one.standard_error)
    mean = found.values.mean(1)
    assert found.standard_error == pytest.approx(mean.std(ddof=1) / 50**0.5)
    assert_close(found.reference, metric_of(model, tokens, metric))


class SquaredError(jc.AbstractMetric):
    """How far the logits are from given ones."""

    target: jax.Array

    def __call__(self, logits):
        return ((logits - self.target) ** 2).mean()

    def token_ids(self):
        return ()


def compiled_program(name):
    stored = np.load(REAL / "tracr" / f"{name}.npz")
    circuit = json.loads((REAL / "tracr" / f"{name}.circuit.json").read_text())
    weights = {key: stored[key] for key in stored if not key.startswith("test_")}
    return jc.from_transformer_lens(weights, circuit["config"]), jnp.asarray(stored["test_tokens"][:24]), circuit


def of_edges(edges):
    """The hypothesis that edges, `(sender, receiver, input)`, are all that there is: all else is resampled, and what nothing reaches."""

    def claim(name, through=None):
        into = {("embed" if one in ("tok", "pos") else one, part) for one, other, part in edges if other == name}
        children = [claim(one, None if part == "in" else part) for one, part in sorted(into)]
        return Claim(
            name, Exact() if children or name == "embed" else Unconditional(), children=children, through=through
        )

    return claim("logits")


@needs_real
@pytest.mark.parametrize(
    "name", ["reverse", "sort", "hist", "frac_prevs_causal", "detect_pattern_ab_causal", "pair_balance"]
)
def test_the_true_circuit_of_a_compiled_program_recovers_all(name):
    """And without its most important edge it does not."""
    model, tokens, circuit = compiled_program(name)
    metric = SquaredError(jax.vmap(lambda tokens: jc.run(model, tokens)[0])(tokens))
    edges = [tuple(edge[:3]) for edge in circuit["structural_edges"]]
    true = jc.scrub(model, of_edges(edges), tokens, metric, KEY, samples=4)
    assert true.baseline.mean() > 1e-3
    assert true.recovered == pytest.approx(1, abs=1e-4)
    assert true.runs > 0
    matter = circuit["causal_effect_resample_maxabs"]
    worst = max((edge for edge in matter if "logits" not in edge), key=matter.get)
    sender, _, rest = worst.partition("->")
    lost = (sender, *rest.split(":"))
    both = {"tok", "pos"} if sender in ("tok", "pos") else {sender}
    left = [edge for edge in edges if not (edge[0] in both and edge[1:] == lost[1:])]
    assert len(left) < len(edges)
    wrong = jc.scrub(model, of_edges(left), tokens, metric, KEY, samples=4)
    assert wrong.recovered + 3 * wrong.recovered_standard_error < 0.95


@needs_real
def test_what_a_compiled_program_computes_is_what_it_depends_on():
    """`reverse` writes at each place the token at the opposite one: any datum that agrees there will do."""
    model, tokens, _ = compiled_program("reverse")
    at, opposite = 2, 5  # behind the first, which begins the text
    metric = SquaredError(jax.vmap(lambda tokens: jc.run(model, tokens)[0])(tokens))
    read = lambda position: Claim("embed", Conditional(position), through="v", positions=position)
    tree = lambda position: Claim(
        "logits", Exact(), children=[Claim("a3.h0", Exact(), positions=at, children=[read(position)])]
    )
    answers = np.asarray(metric.target)[:, at].argmax(-1)
    of_place = jc.LogitDiff(answers, (answers + 1) % 4, position=at)
    right, wrong = (
        jc.scrub(model, tree(where), tokens, of_place, KEY, samples=20) for where in (opposite, opposite - 1)
    )
    assert right.recovered == pytest.approx(1, abs=1e-4)
    assert 0 < right.claims[-1].itself < 0.9
    assert abs(wrong.recovered) < 0.5
