"""Strictness for the whole suite: no silent promotion, full matrix-product precision, float64 unless JAXCIRC_TEST_X64=0."""

import functools as ft
import gc
import os
import sys
import zlib
from pathlib import Path

import jax
import jaxtyping
import pytest
from jax._src.interpreters import mlir


# Programs here are compiled often and run briefly: without optimisation, with the older of XLA's two ways to write fused loops, and each
# program in one piece, compiling takes a third of the time.
QUICK_COMPILES = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # the older way has gone since, and a flag that XLA does not know ends the process
    QUICK_COMPILES += " --xla_cpu_use_fusion_emitters=false"
given = os.environ.get("XLA_FLAGS", "")
if QUICK_COMPILES not in given:  # in workers it is: flags are part of what programs are kept by
    os.environ["XLA_FLAGS"] = f"{QUICK_COMPILES} {given}".strip()

CASES, OF_LAWS = 1, 2  # of each test, and of those in `laws/`, in a run of the whole suite

# Most of a run is compiling, and most programs are those of the last run: workers share them on disk, and keep them for the next run.
# JAXCIRC_TEST_CACHE= (nothing) compiles everything anew.
CACHE = os.environ.get("JAXCIRC_TEST_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
if CACHE:
    # For the processes that tests start: of each program loaded the compiler says in kilobytes that two preferences are no features.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE  # for the commands that tests start as processes
    jax.config.update("jax_compilation_cache_dir", CACHE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Else the folder is part of what programs are kept by, also on CPUs, and tests of commands have folders of their own.
    os.environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] = "none"
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

jax.config.update("jax_enable_x64", os.environ.get("JAXCIRC_TEST_X64", "1") == "1")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_default_matmul_precision", "highest")

# The processes that tests start import the library, some sixty times: with its bytecode kept that takes three quarters of the time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Each program is written down in a context of its own, and making that takes as long as writing a small program: here a test file has one.
mlir.make_ir_context = ft.cache(mlir.make_ir_context)

# Tracing makes objects by the million, and hardly any are garbage: at Python's own pace a tenth of a run is looking for it.
gc.set_threshold(50_000, 10, 10)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cases",
        metavar="N",
        help=f"how many cases of each test are run, or 'all'; unless given, all of named files, and of the whole suite {CASES}, or "
        f"{OF_LAWS} of what is in tests/laws",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.cases is None:  # workers are told
        named = config.args_source == pytest.Config.ArgsSource.ARGS
        config.option.cases = "all" if named else "some"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves so many cases of each test as --cases says. They lie evenly among all, from another one on in each test, so that each model
    and each kind of site comes up in many tests; and another Python takes others.
    """
    if config.option.cases == "all":
        return
    given = config.option.cases
    kept: set[pytest.Item] = set()
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:  # cases of one test may lie apart: those with the same shared fixture are run together
        tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    for name, cases in tests.items():
        some = int(given) if given != "some" else OF_LAWS if name.startswith("tests/laws/") else CASES
        first, n = zlib.crc32(name.encode()) + sys.version_info.minor // 2, min(some, len(cases))
        kept.update(cases[(first + i * len(cases) // n) % len(cases)] for i in range(n))
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_collection_finish():
    """Leaves what was imported out of every search for garbage."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which no test passed has failed, also where its workers died before they could say so."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    workers = hasattr(session.config, "workerinput") or session.config.option.collectonly
    gc.freeze()  # pytest looks for garbage five times before it ends
    if not workers and reporter is not None and not reporter.stats.get("passed") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Forgets compiled programs before there are too many: each takes mapped memory, of which Linux gives a process 65,530 pieces, and then
    the compiler crashes.
    """
    yield
    mlir.make_ir_context.cache_clear()
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        gc.unfreeze()
        jax.clear_caches()
        gc.collect()
    gc.freeze()  # programs stay, and to look through them for garbage takes seconds


@pytest.fixture(scope="session")
def model():
    """The shipped model, where a file has no other."""
    import jaxcirc as jc  # not above: with --jaxtyping-packages nothing is checked of what is imported before tests are collected

    return jc.from_pretrained("tiny-gpt2")


@pytest.fixture(scope="session")
def tokenizer():
    """Its tokenizer."""
    import jaxcirc as jc

    return jc.load_tokenizer("tiny-gpt2")


@pytest.fixture
def getkey():
    """Fresh random keys, the same ones in every run."""
    key = jax.random.key(0)

    def next_key():
        nonlocal key
        key, out = jax.random.split(key)
        return out

    return next_key


@pytest.fixture
def same_cache(monkeypatch):
    """Commands leave the cache of compiled programs where it is, if JAX was told so."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(jax.config.values["jax_compilation_cache_dir"] or ""))


@pytest.fixture
def untyped():
    """Runs a test as users run the library, without the suite's type checks: bad input is then for the library itself to refuse."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
