"""Which method finds the effects of heads when none is named, that every output says which, and what the choice costs in truth."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.attribution import affordable_method
from jaxcirc.attribution._head_effects import OPERATIONS_A_LAYER, patching_operations
from jaxcirc.cli import main
from jaxcirc.cli._heads import METHODS
from jaxcirc.parts import MLP

from .helpers import assert_close, counting_calls, make_model, model_named, tokens_for


PARTS = ("q", "k", "v", "z")


def of_random(*, layers=3, batch=2, seq=5, **sizes):
    model = make_model(jax.random.key(4), layers=layers, **sizes)
    clean = jnp.stack([tokens_for(model, seq, seed) for seed in range(batch)])
    corrupt = clean.at[:, 1].set((clean[:, 1] + 1) % model.d_vocab)
    return model, clean, corrupt, jc.LogitDiff(jnp.arange(batch), jnp.arange(batch) + 1)


@pytest.fixture(scope="module")
def clauses():
    """The shipped model's task: its effects by each method, and by none that is named."""
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    prompts = jc.data.subject_verb(tokenizer, 16, kind="rc", seed=0)
    given = model, prompts.clean, prompts.corrupt, prompts.metric()
    return {name: jc.head_effects(*given, method=method) for name, method in (("none", None), *METHODS.items())}


def of_heads(found):
    """Outputs' effects `{(layer, head): effect}`, the largest first."""
    mean = np.asarray(found.z).sum(-1).mean(0)
    return {at: float(mean[at]) for at in sorted(np.ndindex(mean.shape), key=lambda at: -abs(mean[at]))}


def test_no_main_head_of_the_shipped_task_is_hidden(clauses):
    """Head 0.3 acts through all later layers: the first of all, of which the gradient sees a tenth and GradDrop a thirtieth."""
    ranked = of_heads(clauses["none"])
    assert list(ranked)[:2] == [(0, 3), (3, 3)]
    assert ranked[0, 3] < -10
    assert clauses["none"].method == jc.ExactPatching()
    estimated = of_heads(clauses["atp-star"])
    assert list(estimated).index((0, 3)) == 2
    assert 0.2 * ranked[0, 3] < estimated[0, 3] < 0
    dropped = of_heads(clauses["atp-star-graddrop"])
    assert list(dropped).index((0, 3)) == 3
    assert 0 < dropped[0, 3] < 0.05 * abs(ranked[0, 3])


def test_effects_say_what_found_them(clauses):
    for name, method in METHODS.items():
        assert clauses[name].method == method
    words = [method.words for method in METHODS.values()]
    assert words == ["exact patching", "AtP* without GradDrop", "AtP* with GradDrop (unsigned)", "the gradient"]
    assert jc.AtPStar(qk_fix=False).words == "AtP* without GradDrop, queries and keys by the gradient"
    # It is part of the structure: effects found in different ways are not put together unnoticed.
    same = jax.tree.map(lambda *x: jnp.concatenate(x), clauses["none"], clauses["patching"])
    assert same.method == jc.ExactPatching()
    with pytest.raises(ValueError, match=r"[Mm]ismatch|structure"):
        jax.tree.map(lambda *x: jnp.concatenate(x), clauses["none"], clauses["atp-star"])


def test_what_is_too_much_to_patch_is_estimated_and_equals_the_named_method():
    given = of_random(d_model=256, d_mlp=1024, heads=16, d_head=16, vocab=50, batch=16, seq=12)
    assert patching_operations(given[0], 16, 12) > OPERATIONS_A_LAYER * 3
    found, named = jc.head_effects(*given), jc.head_effects(*given, method=jc.AtPStar())
    assert found.method == named.method == jc.AtPStar()
    for part in PARTS:
        assert float(jnp.abs(getattr(named, part)).max()) > 1e-3
        assert (getattr(found, part) == getattr(named, part)).all()
    few = jc.head_effects(given[0], *(x[:1, :6] for x in given[1:3]), jc.LogitDiff(0, 1))
    assert few.method == jc.ExactPatching()


def test_the_rule_counts_runs_tokens_and_layers():
    """Each vector's run: the MLP of its layer, the layers after it, one row of logits; two operations for each weight."""
    for name in ("gpt2", "parallel", "attention-only", "gpt2-untied"):
        model = model_named(name)
        runs, count = 4 * 3 * model.n_heads * 5, lambda tree: sum(x.size for x in jax.tree.leaves(tree))
        want = 0
        for layer, block in enumerate(model.blocks):
            after = (count(block.mlp) if block.has_middle else 0) + sum(count(b) for b in model.blocks[layer + 1 :])
            want += 2 * runs * (5 * after + model.W_U.size)
        assert patching_operations(model, 3, 5) == want > 0
        most = max(n for n in map(int, 2.0 ** np.arange(40)) if affordable_method(model, n, 5) == jc.ExactPatching())
        assert 1 < most < 2**39
        assert affordable_method(model, 2 * most, 5) == jc.AtPStar()
        assert patching_operations(model, most, 5) <= OPERATIONS_A_LAYER * model.n_layers


def test_patching_traces_one_block_for_all_layers_and_nothing_for_other_prompts():
    for layers in (2, 4):
        given = of_random(layers=layers, d_model=8 + layers)  # of sizes of its own, so that nothing is traced before
        with counting_calls(MLP, "__call__") as traces:
            jc.head_effects(*given, method=jc.ExactPatching())
            assert len(traces) == 3  # a layer in the run of both sides; the rest of a layer; a later layer
            jc.head_effects(given[0], given[1], (given[2] + 1).at[:, 0].set(given[1][:, 0]) % 13, given[3])
            assert len(traces) <= layers + 4  # more vectors may differ, and then groups are larger


def test_vectors_that_do_not_differ_have_no_effect_at_all():
    model, clean, corrupt, metric = of_random()
    found = jc.head_effects(model, clean, corrupt, metric)
    for part in PARTS:
        assert not np.asarray(getattr(found, part))[..., 0].any()  # before the token that differs
    assert float(jnp.abs(found.z).max()) > 1e-3


def test_effects_do_not_depend_on_how_many_runs_go_together():
    given = of_random(batch=3)
    want = jc.head_effects(*given, method=jc.ExactPatching())
    for tokens_at_once in (1, 37):
        found = jc.head_effects(*given, method=jc.ExactPatching(tokens_at_once))
        for part in PARTS:
            # In float32 another order of summation in the products of a batch of another size.
            assert_close(getattr(found, part), getattr(want, part), tolerance=None if found.z.dtype == float else 1e-4)


@pytest.fixture
def file(tmp_path):
    nouns = (("teacher", "teachers"), ("doctor", "doctors"), ("farmer", "farmers"))
    row = lambda a, b: {
        "clean_prefix": f"The {a}",
        "patch_prefix": f"The {b}",
        "clean_answer": " is",
        "patch_answer": " are",
    }
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(row(*pair)) for pair in nouns), encoding="utf-8")
    return path


def said(capsys, file, *more):
    assert main(["heads", "--model", "tiny-gpt2", "--prompts", str(file), *more]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", METHODS)
def test_every_output_of_the_command_says_the_method(name, file, tmp_path, capsys):
    drawn = tmp_path / "heads.svg"
    printed = said(capsys, file, "--method", name, "--plot", str(drawn))
    words = METHODS[name].words
    assert f"effects by {words}\n" in printed
    svg = drawn.read_text("utf-8")
    assert f"<title>Effects of heads, corrupt − clean, by {words}</title>" in svg
    assert svg.count(f"{words}; mean of 3 prompts") == 4
    table = printed.split("value\n")[1].split("\n\n")[0]
    assert ("+" in table) == (name != "atp-star-graddrop")
    assert "-0.000" not in table
    assert json.loads(said(capsys, file, "--method", name, "--json"))["method"] == name


def test_the_command_chooses_for_all_prompts_and_not_for_those_in_memory(file, capsys, monkeypatch):
    answers = lambda *more: json.loads(said(capsys, file, "--json", *more))
    assert answers()["method"] == "patching"
    model, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    seq = jc.data.load_prompts(file, tokenizer).clean.shape[1]
    three, one = (patching_operations(model, prompts, seq) for prompts in (3, 1))
    monkeypatch.setattr("jaxcirc.attribution._head_effects.OPERATIONS_A_LAYER", 2 * one / model.n_layers)
    assert one < 2 * one < three
    assert affordable_method(model, 1, seq) == jc.ExactPatching()
    whole, split = answers(), answers("--batch-size", "1")
    assert whole["method"] == split["method"] == "atp-star"
    for a, b in zip(whole["rows"], split["rows"], strict=True):
        assert a["head"] == b["head"]
        assert [b[part] for part in PARTS] == pytest.approx([a[part] for part in PARTS], abs=1e-4)
    runs = 4 * 3 * 4 * 4 * seq
    assert f"AtP* without GradDrop; --method patching would take {runs} runs\n" in said(capsys, file)


def test_heads_that_share_keys_and_values_have_the_same_of_them(file, tmp_path, capsys, monkeypatch):
    grouped = make_model(jax.random.key(0), vocab=1059, heads=4, kv_heads=2, pairs=2, norm="RMS", gated=True)
    monkeypatch.setattr("jaxcirc.cli._heads.load_model", lambda arguments: grouped)
    drawn = tmp_path / "heads.svg"
    printed = said(capsys, file, "--top", "8", "--plot", str(drawn))
    assert "2 heads each share a key and a value, whose effects stand with every one of them" in printed
    rows = [line.split() for line in printed.split("value\n")[1].splitlines()[:8]]
    of = {head: numbers for head, *numbers in rows}
    assert len(of) == 8
    for layer in (0, 1):
        for first in (0, 2):
            one, other = (of[f"{layer}.{head}"] for head in (first, first + 1))
            assert one[2:] == other[2:]
            assert one[:2] != other[:2]
        assert of[f"{layer}.0"][2:] != of[f"{layer}.2"][2:]
    assert drawn.read_text("utf-8").count(">group of heads that share it<") == 2


def test_grad_drop_of_one_layer_is_refused_in_the_words_of_the_command(file, capsys, monkeypatch):
    single = make_model(jax.random.key(0), layers=1)
    monkeypatch.setattr("jaxcirc.cli._heads.load_model", lambda arguments: single)
    assert main(["heads", "--model", "tiny-gpt2", "--prompts", str(file), "--method", "atp-star-graddrop"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--method atp-star-graddrop drops one layer's gradient" in error
    assert "Use --method atp-star." in error
