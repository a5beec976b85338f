"""Programs made for accelerators, on this machine: every one of every verb lowers and calls nothing back, loops go over chunks that fill a
device, and what the programs for accelerators compute is what those for CPUs do.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc
from jaxcirc import Kind, Site
from jaxcirc._target import for_platform, on_cpu, running_platform, target_platform
from jaxcirc.attribution._states import error_differences
from jaxcirc.linear import contract_batch, pull_rows
from jaxcirc.linear._chain import how_many_windows
from jaxcirc.linear._contract import sizes_for
from jaxcirc.runs import allowance, BUDGET
from jaxcirc.units import Latents, write_tiles

from .dictionaries import make_sae
from .full_sizes import AT_FULL_SIZE, FEW, segment
from .helpers import assert_close, counting_programs, needs_x64, tokens_for
from .laws.test_same_weights import leaves, problem, prompts, VERBS
from .programs import Loop, loops, primitives, recording
from .stored_models import stored_model


pytestmark = needs_x64
PRE, POST = Site(0, Kind.RESID_PRE), Site(0, Kind.RESID_POST)


def operator(model, engine: str, last: int = 1):
    """From the first block's beginning to the end of the `last`."""
    return jc.edge(model, prompts(model)[0][0], Site(0, Kind.RESID_PRE), Site(last, Kind.RESID_POST), engine=engine)


def forms(J, m: int, k: int, budget: int = BUDGET):
    """Bilinear forms of `m` covectors and `k` vectors, spread over the positions."""
    rng, seq = np.random.default_rng(0), J.target_shape[0]
    items = lambda n: jnp.asarray(rng.normal(size=(n, J.target_shape[-1])))
    at = lambda n: jnp.asarray(rng.integers(0, seq, n), jnp.int32)
    return J.contract(items(m), at(m), items(k), at(k), budget=budget)


# What no verb runs at the sizes of its tests, by any route.
MORE = {
    "a contraction of many rows": lambda model: forms(operator(model, "structured", 0), 40, 60, budget=2**14),
    "a contraction of few rows": lambda model: forms(operator(model, "structured", 0), 3, 100, budget=2**14),
    "a contraction in steps": lambda model: [forms(operator(model, "structured"), *n) for n in ((9, 40), (40, 9))],
    "a contraction by sweeps": lambda model: forms(operator(model, "autodiff"), 9, 40),
    "a matrix in steps": lambda model: operator(model, "structured").as_matrix(),
    "a matrix by sweeps": lambda model: operator(model, "autodiff").as_matrix(),
    "singular values": lambda model: operator(model, "autodiff").svd(2, jax.random.key(0))[1],
    "pairs at one position": lambda model: jc.feature_jacobian(
        *problem(model)[:2], prompts(model)[0][0], Site(0, Kind.MLP_OUT), Site(1, Kind.MLP_OUT), positions="same"
    ),
    "heads by AtP*": lambda model: jc.head_effects(model, *prompts(model), jc.LogitDiff(1, 2), method=jc.AtPStar()).z,
    "nodes by a gradient": lambda model: jc.node_effects(*problem(model), method=jc.Gradient()).acts,
    "every edge patched": lambda model: jc.patching.exact_edges(model, *prompts(model), jc.LogitDiff(1, 2)),
    "masks": lambda model: (
        jc.patching.train_masks(
            model, *prompts(model), jc.LogitDiff(1, 2), share=0.5, steps=2, key=jax.random.key(0)
        ).scores
    ),
}


# With rotated positions, shared keys, gated MLPs, and norms and caps behind them.
OF_ANOTHER_FAMILY = ("edge_effects", "fit_lens", "head_effects", "edge_attribution", "attribution_graph")


@pytest.fixture(scope="module")
def recorded():
    """The calls of all programs that the verbs run where sizes are those for a GPU, and what comes of the verbs."""
    model, found = stored_model("gpt-neo"), {}
    with recording() as calls, for_platform("cuda"):
        for verb, run in (VERBS | MORE).items():
            found[verb] = leaves(run(model))
        for verb in OF_ANOTHER_FAMILY:
            VERBS[verb](stored_model("gemma2"))
    return list(calls.values()), found


def test_every_program_lowers_for_accelerators(recorded):
    """`jax.export` refuses custom calls that it does not know to be stable, and the lowering what a platform has not."""
    calls, _ = recorded
    assert len({call.name for call in calls}) > 100
    for call in calls:
        exported = jax.export.export(call.program, platforms=("cuda", "tpu"))(*call.args, **call.kwargs)
        assert exported.platforms == ("cuda", "tpu")
        assert "custom_call" not in exported.mlir_module(), call.name
        assert not [name for name in primitives(call.jaxpr()) if "callback" in name or "feed" in name], call.name


# Loops that stay. At these sizes all that is cut into chunks is one chunk, so that no other loop goes round more than once.
STAY = {
    "generation._loop.generated": "one token after the other",
    "linear._dense._matrix": "one target position after the other, each with all its coordinates",
    "linear._contract._contract_sorted": "groups of tiles, as many as the positions reach",
    "linear._rows_back._meet_batch": "the same, for prompts",
    "linear._chain_contract.meet": "as many tiles at once as the window has positions",
}


def test_no_program_loops_over_items_one_by_one(recorded):
    calls, _ = recorded
    seen = {}
    for call in calls:
        around = [loop for loop in loops(call.jaxpr()) if loop.rounds is None or loop.rounds > 1]
        if around:
            seen.setdefault(call.name, around)
    assert seen.keys() == STAY.keys()


# The verbs, and the routes, with other programs for an accelerator than for a CPU.
OTHERS = (
    *(name for name in MORE if name.startswith("a contraction")),
    *("pairs at one position", "block_paths", "edge_effects", "feature_jacobian", "steer", "steer_features"),
    *("check_graph", "head_loadings", "explain_edge", "fit_lens", "node_effects"),
)


@pytest.mark.parametrize("name", OTHERS)
def test_programs_for_accelerators_compute_the_same(recorded, name):
    _, found = recorded
    want = leaves((VERBS | MORE)[name](stored_model("gpt-neo")))
    assert len(found[name]) == len(want) > 0
    assert max(np.abs(np.nan_to_num(each)).max(initial=0) for each in want) > 1e-3
    for got, each in zip(found[name], want, strict=True):
        size = max(np.abs(np.nan_to_num(each)).max(initial=0), 1e-3)
        np.testing.assert_allclose(got, each, rtol=0, atol=1e-10 * size)


@pytest.mark.parametrize("budget", [2**9, 2**12, 2**15])
def test_parts_of_which_the_last_is_smaller(budget):
    """Rows of a lens on their way through a block: chunks of rows, and of positions, that divide neither."""
    model, rng = stored_model("gpt-neo"), np.random.default_rng(0)
    one = jc.edge(model, tokens_for(model, 7), PRE, POST).product.segments[0]
    rows = jnp.asarray(rng.normal(size=(7, 11, model.d_model)))
    want = np.asarray(pull_rows(one, rows + 0, first=0, budget=BUDGET))
    with for_platform("cuda"):
        assert_close(pull_rows(one, rows + 0, first=0, budget=budget), want)


@pytest.mark.parametrize("budget", [2**16, 2**18, BUDGET])
def test_some_prompts_at_once(budget):
    model, rng, batch = stored_model("gpt-neo"), np.random.default_rng(0), 7
    made = [jc.edge(model, tokens_for(model, 6, seed), PRE, POST).product.segments[0] for seed in range(batch)]
    stacked = lambda of: jnp.stack([of(each) for each in made])
    items = lambda n: jnp.asarray(rng.normal(size=(batch, n, model.d_model)))
    at = lambda n: jnp.asarray(rng.integers(0, 6, (batch, n)), jnp.int32)
    given = (stacked(lambda s: s.masks[0]),), stacked(lambda s: s.resid), None, items(5), at(5), items(9), at(9)
    want = np.asarray(contract_batch(made[0], *given))
    with for_platform("cuda"):
        assert sizes_for(made[0], 5, 9, budget).examples > 1
        assert_close(contract_batch(made[0], *given, budget=budget), want)


# --- At full size: nothing is computed

FILLS = (
    5 * 10**8
)  # operations of a round: in float32 they take an H200 ten microseconds, about as long as it takes to begin one


def small_loops(name: str) -> list[Loop]:
    """Loops that go round often and compute little in each round; not those that only copy, group by group."""
    often = [loop for loop in loops(AT_FULL_SIZE[name]().jaxpr) if loop.rounds is None or loop.rounds > FEW]
    return [loop for loop in often if loop.work < FILLS and loop != Loop(None, 0)]


@pytest.mark.parametrize("name", AT_FULL_SIZE)
@pytest.mark.usefixtures("untyped")  # shapes without numbers are no arrays
def test_a_loop_is_over_chunks_that_fill_a_device(name):
    with for_platform("cuda"):
        assert not small_loops(name)


@pytest.mark.parametrize("name", ["feature_jacobian at one position", "node effects, a long prompt"])
@pytest.mark.usefixtures("untyped")
def test_loops_for_a_cpu_do_not(name):
    with for_platform("cpu"):
        assert small_loops(name)


@pytest.mark.usefixtures("untyped")
def test_large_contractions_push_each_column_once():
    """An accelerator has the memory to keep what thousands of columns become; without it each block of rows would push all anew."""
    for seq, m, k in ((128, 2048, 4096), (1024, 8192, 8192), (512, 4096, 24_576)):
        with for_platform("cuda"):
            sizes = sizes_for(segment(seq), m, k, allowance())
        assert sizes.kept
        rounds = -(-m // sizes.block) * -(-(k + sizes.width * seq) // (sizes.tiles * sizes.width))
        assert rounds <= 64


def test_windows_are_compiled_apart_where_that_pays():
    work = 12 * 2 * 1000 * 64 * 768**2  # of 1,000 rows through two blocks
    assert how_many_windows(work) == 8
    with for_platform("cuda"):
        assert how_many_windows(work) == 1
        assert how_many_windows(1000 * work) == 8


def test_an_accelerator_grants_a_share_of_its_memory():
    assert allowance() == BUDGET
    with for_platform("cuda"):  # which is not here
        assert allowance() == 2**32
        assert allowance(1000) == 1000


def test_programs_for_two_platforms_are_two():
    """Sizes are static arguments: what was compiled for one is never run for the other."""
    x, sae, again = jnp.ones((1, 40, 17)), make_sae(jax.random.key(0), 17, PRE), []
    latents = Latents(jnp.zeros((1, 3), jnp.int32), jnp.arange(3, dtype=jnp.int32)[None], jnp.ones((1, 3)))
    for platform in ("cpu", "cuda", "cpu"):
        with for_platform(platform), counting_programs() as programs:
            error_differences(sae, x, x, latents, write_tiles())
        again.append(len(programs))
    assert again[0] > 0
    assert again[1:] == [again[0], 0]


def test_a_platform_that_there_is_not(untyped):
    with (
        pytest.raises(ValueError, match="for_platform: expected one of cpu, cuda, rocm, tpu; got 'gpu'"),
        for_platform("gpu"),
    ):
        pass
    assert target_platform() == running_platform()


def test_the_default_device_is_the_target():
    with jax.default_device(jax.devices("cpu")[0]):
        assert on_cpu()
        with for_platform("tpu"):
            assert not on_cpu()
            assert running_platform() == "cpu"
        assert on_cpu()
