"""Path patching in each of its meanings, against plain runs with edits at sites."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc.patching._path_patch import _sum_of

from . import figures
from .helpers import assert_close, by_numpy, counting_programs, make_model, model_named, MODELS
from .test_patch_edges import assert_moved_alike, changed_writes, metric_of, problem


def held_between(model, clean, change, sender, *, recompute):
    """Edits that add what a sender moved to the clean prompt and hold all else: attention, and MLPs unless they are recomputed. A sender's
    own output is put in by what it is added to.
    """
    _, own = jc.run(model, clean, record="all")
    edits = {}
    for layer, block in enumerate(model.blocks):
        for kind, name in (("hook_attn_out", f"a{layer}"), ("hook_mlp_out", f"m{layer}")):
            if name[0] == "m" and block.mlp is None:
                continue
            site = f"blocks.{layer}.{kind}"
            mine = sender.split(".")[0] == name
            if mine:
                edits[site] = jc.Replace(own[site] + change)
            elif name[0] == "a" or not recompute or (sender[0] in "am" and layer < int(sender.split(".")[0][1:])):
                edits[site] = jc.Replace(own[site])
    if sender == "embed":
        edits["hook_embed"] = jc.Add(change)
    return edits, own


def by_definition(model, clean, metric, change, sender, receivers, *, recompute=False, held=None):
    """Runs with the sender's change held in, reads what receivers read there, and puts it into a free run of the clean prompt."""
    edits, own = held_between(model, clean, change, sender, recompute=recompute)
    _, there = jc.run(model, clean, edits=edits, record="all")
    put, behind = {}, None
    for receiver in receivers:
        if receiver == "logits":
            last = f"blocks.{model.n_layers - 1}.hook_resid_post"
            behind = there[last] - own[last]
            put[last] = jc.Add(behind)
        elif receiver[0] == "m":
            layer = int(receiver[1:])
            site = f"blocks.{layer}.hook_mlp_out"
            read = f"blocks.{layer}." + ("hook_resid_mid" if model.blocks[layer].has_middle else "hook_resid_pre")
            free = {at: edit for at, edit in edits.items() if at != site}
            value = jc.run(model, clean, edits={**free, read: jc.Replace(there[read])}, record=[site])[1][site]
            put[site] = jc.Replace(value)
        else:
            layer, head, part = re.match(r"a(\d+)\.h(\d+)\.(.)", receiver).groups()
            site = f"blocks.{layer}.attn.hook_{part}"
            mask = put[site].mask if site in put else jnp.zeros(own[site].shape, bool)
            # The other heads of the layer are free: they read what an earlier receiver has changed.
            put[site] = jc.Blend(mask.at[:, int(head)].set(True), there[site])
    return metric(jc.run(model, clean, edits=put)[0])


by_definition = by_numpy(by_definition, static_argnames=("sender", "receivers", "recompute"))


@pytest.mark.parametrize("mlps", ["frozen", "recomputed"])
@pytest.mark.parametrize("name", MODELS)
def test_paths_are_their_definition(name, mlps):
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph, last = jc.component_graph(model), model.n_layers - 1
    sets = [(f"a{last}.h0.q", f"a{last}.h1.k", f"a{last}.h1.v"), ("logits",)]
    sets += [(f"m{last}", f"a{last}.h1.v"), ("m0", "logits")] if graph.has_mlp else []
    sets += [("a0.h0.v", f"a{last}.h1.q")]
    senders = ["embed", "a0.h1", *(["m0"] if graph.has_mlp else [])]
    base = np.asarray(metric_of(model, clean, metric))
    for receivers in sets:
        reach = [s for s in senders if any(graph.edges[graph.sender(s), graph.receiver(r)] for r in receivers)]
        got = jc.path_patch(model, clean, corrupt, metric, receivers=receivers, senders=reach, mlps=mlps)
        want = []
        for sender in reach:
            for row in range(2):
                one = jax.tree.map(lambda x, row=row: x[row], metric)
                change = changed_writes(model, clean[row], corrupt[row])[sender]
                given = model, clean[row], one, change, sender, receivers
                want.append(by_definition(*given, recompute=mlps == "recomputed"))
        want = np.reshape(want, (len(reach), 2))
        assert_moved_alike(got, want, base)


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2", "attention-only"])
def test_a_direct_edge_is_the_edge(name):
    """One sender, one receiver, MLPs held: the run in which that edge alone carries the corrupt prompt."""
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph = jc.component_graph(model)
    for receiver in ("a1.h1.q", "a1.h0.v", "logits", *(["m1"] if graph.has_mlp else [])):
        found = jc.path_patch(model, clean, corrupt, metric, receivers=[receiver])
        edges = np.flatnonzero(graph.edges[:, graph.receiver(receiver)])
        keep = np.stack([graph.edges & ~graph.mask([f"{graph.senders[i]}->{receiver}"]) for i in edges])
        assert_close(found[edges], jc.patch_edges(model, clean, corrupt, metric, keep))
        base = np.broadcast_to(metric_of(model, clean, metric), found.shape)
        rest = np.setdiff1d(np.arange(len(graph.senders)), edges)
        if len(rest):
            assert_close(found[rest], base[rest])


def test_a_chain_to_the_logits_holds_all_else():
    """Sender, keys of two heads, logits: the logits read the clean stream and by how much these two heads' outputs change."""
    model = model_named("gpt2-inverse-layer-scale")
    clean, corrupt, metric = problem(model)
    heads = ("a2.h0.k", "a2.h1.k")
    got = jc.path_patch(
        model, clean, corrupt, metric, receivers=[heads, ["logits"]], senders=["a0.h0", ("a1.h1", "m0")]
    )
    whole = jc.path_patch(model, clean, corrupt, metric, receivers=heads, senders=["a0.h0", ("a1.h1", "m0")])
    assert np.abs(np.asarray(got - whole)).max() > 1e-4
    for row in range(2):
        one = jax.tree.map(lambda x, row=row: x[row], metric)
        moved = changed_writes(model, clean[row], corrupt[row])
        _, own = jc.run(model, clean[row], record="all")
        for number, change in enumerate((moved["a0.h0"], moved["a1.h1"] + moved["m0"])):
            keys = jc.run(
                model, clean[row], edits={"blocks.2.hook_resid_pre": jc.Add(change)}, record=["blocks.2.attn.hook_k"]
            )[1]
            edits = {"blocks.2.attn.hook_k": jc.Replace(keys["blocks.2.attn.hook_k"])}
            out = jc.run(model, clean[row], edits=edits, record=["blocks.2.hook_attn_out"])[1]
            moves = out["blocks.2.hook_attn_out"] - own["blocks.2.hook_attn_out"]
            want = one(jc.run(model, clean[row], edits={"blocks.2.hook_resid_post": jc.Add(moves)})[0])
            assert_close(got[number, row], np.asarray(want))


@pytest.mark.parametrize("name", ["gpt2-inverse-layer-scale", "parallel"])
def test_an_mlp_whose_write_is_given_is_not_recomputed(name):
    """As a sender beside others, where it is patched, and as a receiver of the stage before."""
    model = model_named(name)
    clean, corrupt, metric = problem(model)
    graph, last = jc.component_graph(model), model.n_layers - 1
    of_last = f"blocks.{last}.hook_mlp_out"
    of = lambda **more: jc.path_patch(model, clean, corrupt, metric, mlps="recomputed", **more)
    assert_close(of(receivers=["logits"], senders=[graph.senders])[0], metric_of(model, corrupt, metric))
    got = of(receivers=["logits"], senders=[("embed", f"m{last}"), "embed"], positions=[[4, 5], [5, 5]])
    chain = of(receivers=[["m0", f"m{last}"], ["logits"]], senders=["embed"])[0]
    for row, sent in enumerate(([4, 5], [5])):
        one = jax.tree.map(lambda x, row=row: x[row], metric)
        moved, (_, own) = changed_writes(model, clean[row], corrupt[row]), jc.run(model, clean[row], record="all")
        held = {site: jc.Replace(own[site]) for site in map("blocks.{}.hook_attn_out".format, range(last + 1))}
        there = np.isin(np.arange(6), sent)[:, None]
        edits = held | {"hook_embed": jc.Add(jnp.where(there, moved["embed"], 0))}
        given = jc.Blend(jnp.asarray(there), own[of_last] + moved[f"m{last}"])
        both = one(jc.run(model, clean[row], edits=edits | {of_last: given})[0])
        alone = one(jc.run(model, clean[row], edits=edits)[0])
        assert np.abs(both - alone) > 1e-3
        assert_close(got[:, row], np.stack([both, alone]))
        # What both MLPs make of the embedding, the later one also of the earlier; the logits read each of them once.
        outs = ["blocks.0.hook_mlp_out", of_last]
        made = jc.run(model, clean[row], edits=held | {"hook_embed": jc.Add(moved["embed"])}, record=outs)[1]
        put = {f"blocks.{layer}.hook_mlp_out": jc.Replace(own[f"blocks.{layer}.hook_mlp_out"]) for layer in range(last)}
        if last > 1:  # those between read what the first writes
            del put["blocks.1.hook_mlp_out"]
        put |= {site: jc.Replace(made[site]) for site in outs}
        assert_close(chain[row], np.asarray(one(jc.run(model, clean[row], edits=held | put)[0])))


def test_frozen_norms_hold_the_logits_beside_other_receivers():
    """The last MLP and the logits read the change with the clean scales, in the run that has them held."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    of = lambda receivers, **more: jc.path_patch(
        model, clean, corrupt, metric, receivers=receivers, senders=["a0.h0"], norms="frozen", **more
    )
    want = []
    for row in range(2):
        one = jax.tree.map(lambda x, row=row: x[row], metric)
        change = changed_writes(model, clean[row], corrupt[row])["a0.h0"]
        scales = ["ln_final.hook_scale", "blocks.1.ln2.hook_scale"]
        own = jc.run(model, clean[row], record=[*scales, "blocks.1.hook_resid_mid"])[1]
        held = {site: jc.Replace(own[site]) for site in scales}
        edits = held | {"blocks.1.hook_resid_mid": jc.Add(change)}
        want.append(one(jc.run(model, clean[row], edits=edits)[0]))
    assert_close(of(["logits", "m1"])[0], np.stack(want))


def test_frozen_norms_make_the_direct_path_linear():
    model = model_named("llama")
    clean, corrupt, metric = problem(model)
    direct = lambda senders: jc.path_patch(
        model, clean, corrupt, metric, receivers=["logits"], senders=senders, norms="frozen"
    )
    base = metric_of(model, clean, metric)
    one, other, both = direct(["a0.h1", "m1", ("a0.h1", "m1")]) - base
    assert np.abs(np.asarray(one * other)).min() > 1e-6
    assert_close(one + other, both)
    live = jc.path_patch(model, clean, corrupt, metric, receivers=["logits"], senders=["m1"]) - base
    assert np.abs(np.asarray(live - other)).max() > 1e-3


def test_positions_of_senders_and_receivers():
    """Negative positions count from the end, and a position that is not read does nothing."""
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    base = np.asarray(metric_of(model, clean, metric))
    of = lambda **more: np.asarray(
        jc.path_patch(model, clean, corrupt, metric, receivers=["a1.h0.q"], senders=["a0.h1", "m0"], **more)
    )
    assert_close(of(positions=[[5, 3], [-1, 2]]), of(positions=[[3, 5], [2, 5]]))
    assert np.abs(of(positions=-1) - base).max() > 1e-4
    assert_close(of(positions=-1), of())  # the metric reads the last position, and so does only its query
    assert_close(of(receiver_positions=np.array([5, -1])), of())
    assert_close(of(receiver_positions=2), np.broadcast_to(base, (2, 2)))
    assert_close(of(positions=np.array([0, 1])), np.broadcast_to(base, (2, 2)))


def test_groups_and_padding_change_nothing():
    model = model_named("gpt-neo")
    clean, corrupt, metric = problem(model, seq=7)
    receivers = ["a1.h0.k", "a1.h1.v"]
    want = jc.path_patch(model, clean, corrupt, metric, receivers=receivers, mlps="recomputed")
    few = jc.path_patch(model, clean, corrupt, metric, receivers=receivers, mlps="recomputed", tokens_at_once=1)
    assert_close(few, want)
    mask = jnp.array([[True] * 7, [True] * 5 + [False] * 2])
    read = jc.LogitDiff(np.array([1, 2]), np.array([3, 4]), position=np.array([6, 4]))
    padded = jc.path_patch(model, clean, corrupt, read, receivers=receivers, mask=mask)
    own = jc.LogitDiff(np.array([2]), np.array([4]))
    assert_close(padded[:, 1:], jc.path_patch(model, clean[1:, :5], corrupt[1:, :5], own, receivers=receivers))


def test_sweeps_share_their_programs():
    model = make_model(jax.random.key(8), layers=3)
    pairs = {seq: problem(model, seq=seq) for seq in (5, 7)}  # made before programs are counted
    of = lambda seq, receivers: jc.path_patch(model, *pairs[seq], receivers=receivers)
    of(5, ["a2.h0.q"])
    with counting_programs() as programs:
        of(7, ["a2.h1.q"])
    assert not programs


def test_what_a_sweep_holds_does_not_grow_with_the_layers_that_it_does_not_send():
    held = lambda senders: (
        _sum_of.lower(jnp.ones((3, senders, 7, 16)), np.ones((20, 5), int), np.ones((20, 5)), np.arange(20) % 3)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
    )
    assert held(200) == held(20) > 0


def test_a_sweep_is_drawn_by_layer_and_sender(tmp_path, untyped):
    model, path = model_named("gpt2"), tmp_path / "paths.svg"
    graph = jc.component_graph(model, embeddings="split", biases=True)
    changes = np.zeros((len(graph.senders), 2))
    changes[graph.sender("a1.h0")], changes[graph.sender("m0")], changes[graph.sender("m1.bias")] = -4, (1, 3), 1
    changes[graph.sender("pos_embed")] = (0.25, 0.5)
    figure = jc.draw_path_patching({"to <the> $logits$": changes, "again": changes[:, :1]}, graph, path)
    first, bars, second, _ = figures.panels(figure)
    assert (first.get_title(), second.get_title()) == ("to <the> $logits$", "again")
    assert figures.names(first, "x") == [*map(str, range(graph.n_heads)), "bias", "mlp", "mlp bias"]
    assert first.get_xlabel().endswith("embed +0.00, pos embed +0.38; mean of 2 prompts")
    assert second.get_xlabel().endswith("embed +0.00, pos embed +0.25; 1 prompt")
    assert figures.bars(figure)[0].get_ylabel() == "change of the metric\nred positive, blue negative"
    want = np.zeros((2, graph.n_heads + 3))
    want[1, 0], want[0, graph.n_heads + 1], want[1, graph.n_heads + 2] = -4, 2, 1
    np.testing.assert_array_equal(figures.cells(first), want)
    assert figures.limits(first) == figures.limits(second) == (-4, 4)
    # Bars: the largest on top, with standard errors over prompts.
    assert figures.names(bars, "y")[:3] == ["a1.h0", "m0", "m1.bias"]
    assert [bar.get_width() for bar in bars.patches][:3] == [-4, 2, 1]
    assert bars.patches[0].get_facecolor()[2] > bars.patches[0].get_facecolor()[0], "blue"
    assert bars.patches[1].get_facecolor()[0] > bars.patches[1].get_facecolor()[2], "red"
    (errors,) = bars.containers[0].lines[2]
    ends = np.asarray(errors.get_segments())[:3, :, 0]
    np.testing.assert_allclose(ends, [[-4, -4], [1, 3], [1, 1]])
    with pytest.raises(ValueError, match=r"all \d+ senders of the graph for 'short', got shape \(3, 2\)"):
        jc.draw_path_patching({"short": changes[:3]}, graph, path)
    with pytest.raises(ValueError, match="sweeps is empty"):
        jc.draw_path_patching({}, graph, path)
    with pytest.raises(TypeError, match="titles and the changes of each sweep"):
        jc.draw_path_patching(changes, graph, path)


BAD = {
    "no receiver": ({"receivers": []}, "no receiver was given"),
    "one name": ({"receivers": "logits"}, "expected a list of receivers"),
    "an unknown receiver": ({"receivers": ["a9.h0.q"]}, "Expected a receiver"),
    "a head": ({"receivers": ["a1.h0"]}, "Did you mean `a1.h0."),
    "a sender behind": ({"receivers": ["a0.h0.q"], "senders": ["m1"]}, "m1 writes to the residual stream behind all"),
    "no sender": ({"receivers": ["logits"], "senders": []}, "no sender was given"),
    "a chain backwards": ({"receivers": [["a1.h0.q"], ["a0.h0.v"]]}, "the chain does not go on there"),
    "logits amid a chain": ({"receivers": [["logits"], ["m1"]]}, "the chain does not go on there"),
    "names and lists": ({"receivers": ["logits", ["m1"]]}, "got both"),
    "a position outside": ({"receivers": ["logits"], "positions": 6}, "none at position 6"),
    "positions of others": ({"receivers": ["logits"], "positions": [1, 2, 3]}, "of 2 prompts; got shape (3,)"),
    "positions between": ({"receivers": ["logits"], "positions": 1.5}, "positions are integers"),
    "positions of several counts": ({"receivers": ["logits"], "positions": [[1], [1, 2]]}, "as many positions of one"),
    "no corrupt prompts": ({"receivers": ["logits"], "corrupt": None}, "without corrupt prompts"),
    "a number as receiver": ({"receivers": [1]}, "receivers: expected a list of names, got 1"),
    "a number as sender": ({"receivers": ["logits"], "senders": [3]}, "senders: expected a list of names, got 3"),
    "a group of none": ({"receivers": ["logits"], "senders": ["m0", ()]}, "group 1 of the senders is empty"),
    "mlps": ({"receivers": ["logits"], "mlps": "live"}, "must be 'frozen' or 'recomputed'"),
    "norms": ({"receivers": ["logits"], "norms": "held"}, "must be 'live' or 'frozen'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    more, message = BAD[case]
    model = model_named("gpt2")
    clean, corrupt, metric = problem(model)
    with pytest.raises((ValueError, TypeError)) as caught:
        jc.path_patch(model, clean, metric=metric, **{"corrupt": corrupt, **more})
    assert message in str(caught.value)
