"""What the tests share: comparison by dtype, and registries of models, edits and metrics, over which the laws run."""

import contextlib
import dataclasses
import functools as ft
import importlib.util
import inspect
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from jax._src import dispatch

import jaxcirc as jc
from jaxcirc._by_numpy import carry_out, OPERATIONS
from jaxcirc._sites import Kind
from jaxcirc.cli import main
from jaxcirc.parts import (
    Attention,
    Block,
    GatedMLP,
    gelu,
    gelu_new,
    LayerNorm,
    make_rotary,
    MLP,
    relu,
    RMSNorm,
    silu,
)


REPOSITORY = Path(__file__).parents[1]
REAL = REPOSITORY.parent / "shared" / "real"  # trained and compiled models of others, where present
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 3e-2}

needs_real = pytest.mark.skipif(not REAL.exists(), reason="the folder of real models is not beside the checkout")
needs_x64 = pytest.mark.skipif(
    "not __import__('jax').config.jax_enable_x64", reason="a float64 oracle; JAXCIRC_TEST_X64=0"
)


def assert_close(got, want, *, tolerance: float | None = None, mass: float = 1e-3) -> None:
    """Equal to `tolerance` (by dtype unless given) relative to the largest entry, after asserting that there is anything to compare."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape, f"shapes {got.shape} and {want.shape}"
    finite = np.isfinite(want)
    assert (np.isfinite(got) == finite).all(), "finite in one and not in the other"
    size = np.abs(want[finite]).max(initial=0.0)
    assert size > mass, f"nothing to compare: the largest entry is {size}"
    tolerance = tolerance or TOLERANCE[str(np.result_type(got))]
    error = np.abs(got[finite].astype(np.float64) - want[finite].astype(np.float64)).max() / size
    assert error <= tolerance, f"relative error {error:.3g} > {tolerance:.3g}"


class Child(subprocess.Popen):
    """Python in a process of its own. What it says on standard error goes to a file: in a pipe that nobody reads yet, it would wait for a
    reader while the test waits for its standard output. `finish` gives its status, standard output and standard error.
    """

    def __init__(self, *arguments: str, cwd: Path, env: dict[str, str]):
        self._said = tempfile.TemporaryFile()  # closed by `finish`
        command = [sys.executable, *arguments]
        given = {"stdout": subprocess.PIPE, "stderr": self._said, "text": True, "encoding": "utf-8"}
        super().__init__(command, cwd=cwd, env=env, **given)

    def finish(self, timeout: float | None = None) -> tuple[int, str, str]:
        out, _ = self.communicate(timeout=timeout)
        with self._said as said:
            said.seek(0)
            return self.returncode, out, said.read().decode("utf-8")


def example(name: str):
    """A script of `examples/` as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(
    key,
    *,
    layers: int = 2,
    d_model: int = 16,
    heads: int = 2,
    d_head: int = 6,
    d_mlp: int = 24,
    vocab: int = 13,
    vocab_out: int | None = None,
    n_ctx: int = 12,
    norm: str = "LN",
    act: Callable = gelu_new,
    windows: tuple[int | None, ...] | None = None,
    causal: bool = True,
    attn_only: bool = False,
    parallel: bool = False,
    scales: tuple[float, ...] | None = None,
    architecture: str = "gpt2",
    kv_heads: int | None = None,
    gated: bool = False,
    offset: float = 0.0,
    before: bool = True,
    behind: bool = False,
    qk_norm: str | None = None,
    pairs: int | None = None,
    thetas: tuple[float, ...] | None = None,
    cap: float | None = None,
    logit_cap: float | None = None,
    embed_scale: float = 1.0,
) -> jc.Transformer:
    """A random model with every bias and weight away from its default, so that a forgotten one shows."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # by numpy: it compiles nothing
    random = lambda *shape: jax.device_put(
        rng.normal(size=shape) / max(shape[-1] if len(shape) == 1 else shape[-2], 1) ** 0.5
    )

    def rms_norm(shape, *sites):
        return RMSNorm(1 - offset + random(*shape) if norm == "RMS" else None, 1e-5, sites, offset)

    def a_norm(*sites):
        if norm in ("RMS", "RMSPre"):
            return rms_norm((d_model,), *sites)
        if norm == "None":
            return None
        weights = (1 + random(d_model), random(d_model)) if norm == "LN" else (None, None)
        return LayerNorm(*weights, 1e-5, sites)

    def attention(layer):
        kv = kv_heads or heads
        into = lambda n: (random(n, d_model, d_head), random(n, d_head))
        scale = jnp.asarray((scales or (d_head**-0.5,) * layers)[layer])
        attn = Attention(
            *into(heads), *into(kv), *into(kv), random(heads, d_head, d_model), random(d_model), scale, cap=cap
        )
        if qk_norm is not None:
            of = lambda n, *sites: rms_norm((n, d_head) if qk_norm == "all" else (d_head,), *sites)
            attn = dataclasses.replace(
                attn, q_norm=of(heads, Kind.Q_SCALE, Kind.Q_NORMALIZED), k_norm=of(kv, Kind.K_SCALE, Kind.K_NORMALIZED)
            )
        if pairs is not None:
            theta = (thetas or (100.0,) * layers)[layer]
            frequencies = theta ** (-np.arange(pairs) / pairs)
            attn = dataclasses.replace(attn, rotary=make_rotary(frequencies, scale.dtype))
        return attn

    def block(layer):
        attn, in_front, after = attention(layer), before or None, behind or None
        ln1 = in_front and a_norm(Kind.LN1_SCALE, Kind.LN1_NORMALIZED)
        ln2 = in_front and a_norm(Kind.LN2_SCALE, Kind.LN2_NORMALIZED)
        if attn_only:
            return Block(ln1, attn, None, None)
        ln1_post = after and a_norm(Kind.LN1_POST_SCALE, Kind.LN1_POST_NORMALIZED)
        ln2_post = after and a_norm(Kind.LN2_POST_SCALE, Kind.LN2_POST_NORMALIZED)
        into = [random(*shape) for _ in range(1 + gated) for shape in ((d_model, d_mlp), (d_mlp,))]
        mlp = (GatedMLP if gated else MLP)(*into, random(d_mlp, d_model), random(d_model), act)
        return Block(ln1, attn, ln2, mlp, parallel, ln1_post, ln2_post)

    return jc.Transformer(
        W_E=random(vocab, d_model) * d_model**0.5,
        W_pos=random(n_ctx, d_model) if pairs is None else None,
        blocks=tuple(block(layer) for layer in range(layers)),
        ln_final=a_norm(Kind.FINAL_SCALE, Kind.FINAL_NORMALIZED),
        untied_W_U=None if vocab_out is None else random(d_model, vocab_out),
        b_U=jnp.zeros(vocab) if vocab_out is None else random(vocab_out),
        windows=windows or (None,) * layers,
        causal=causal,
        architecture=architecture,
        name="random",
        embed_scale=embed_scale,
        logit_cap=logit_cap,
        context=n_ctx if pairs is not None else None,
    )


RMS_GATED = {"norm": "RMS", "gated": True, "act": silu, "heads": 4, "kv_heads": 2, "pairs": 3}
GEMMA = {"offset": 1.0, "act": gelu_new, "embed_scale": 4.0}
MODELS: dict[str, Callable[..., jc.Transformer]] = {
    "gpt2": lambda key: make_model(key),
    "gpt2-untied": lambda key: make_model(key, vocab_out=7, act=gelu),
    "gpt2-inverse-layer-scale": lambda key: make_model(
        key, layers=3, scales=tuple(6**-0.5 / (i + 1) for i in range(3))
    ),
    "gpt-neo": lambda key: make_model(key, windows=(None, 3), scales=(1.0, 1.0), architecture="gpt_neo"),
    "lnpre": lambda key: make_model(key, norm="LNPre", vocab_out=13),
    "no-norm-relu-bidirectional": lambda key: make_model(key, norm="None", act=relu, causal=False, vocab_out=5),
    "attention-only": lambda key: make_model(key, attn_only=True),
    "parallel": lambda key: make_model(key, parallel=True),
    "neox": lambda key: make_model(key, parallel=True, pairs=2, act=gelu, vocab_out=13),
    "llama": lambda key: make_model(key, **RMS_GATED),
    "qwen3": lambda key: make_model(key, qk_norm="head", **RMS_GATED),
    "olmo2": lambda key: make_model(key, qk_norm="all", before=False, behind=True, **RMS_GATED),
    "gemma2": lambda key: make_model(
        key, behind=True, cap=2.0, logit_cap=3.0, windows=(3, None), scales=(0.3, 0.3), **RMS_GATED | GEMMA
    ),
    "gemma3": lambda key: make_model(
        key, behind=True, qk_norm="head", windows=(3, None), thetas=(10.0, 200.0), **RMS_GATED | GEMMA
    ),
}


@ft.cache
def model_named(name: str) -> jc.Transformer:
    """The registry's model, made once: models are frozen."""
    return MODELS[name](jax.random.key(0))


# Every kind of edit, made from the value at a site so that it leaves it as it is.
NEUTRAL_EDITS: dict[str, Callable[[jax.Array], jc.AbstractEdit]] = {
    "Replace": lambda value: jc.Replace(value),
    "Add": lambda value: jc.Add(jnp.zeros((), value.dtype)),
    "Scale": lambda value: jc.Scale(jnp.ones((), value.dtype)),
    "Blend": lambda value: jc.Blend(jnp.zeros((), value.dtype), jnp.ones_like(value)),
    "Blend with itself": lambda value: jc.Blend(jnp.ones(value.shape[-1], bool), value),
    "Detach": lambda value: jc.Detach(),
    "Apply": lambda value: jc.Apply(lambda x: x),
    "At": lambda value: jc.At(slice(1, None), jc.Replace(value)),
}

METRICS: dict[str, Callable[[], jc.AbstractMetric]] = {
    "LogitDiff": lambda: jc.LogitDiff(2, 0),
    "LogitDiff alone": lambda: jc.LogitDiff(2, position=1),
    "LogProb": lambda: jc.LogProb(2),
    "KL": lambda: jc.KL(jnp.arange(5.0)),
}


class Chosen(jc.AbstractEdit):
    """One of several edits by number, from 1, or none for 0: a sweep over sites and edits is then one `vmap` and one compilation."""

    choice: jax.Array
    edits: tuple[jc.AbstractEdit, ...]

    def __call__(self, x):
        # One operation, and not a `jnp.where` an edit: a model has forty sites, and each operation is traced.
        return jax.lax.select_n(jnp.asarray(self.choice, jnp.int32), x, *(edit(x) for edit in self.edits))


def one_at_a_time(sites: int, edits: int = 1) -> jax.Array:
    """`[edits * sites + 1, sites]`: the choices of a sweep, each edit at each site alone, edit by edit; the last row edits nothing."""
    return jnp.asarray(
        np.concatenate([*(np.eye(sites, dtype=int) * (n + 1) for n in range(edits)), np.zeros((1, sites), int)])
    )


@contextlib.contextmanager
def counting_calls(owner: type, method: str) -> Iterator[list[None]]:
    """A list that grows by one whenever the body of `owner.method` runs, which under `jit` is whenever it is traced."""
    calls, body = [], getattr(owner, method)

    @ft.wraps(body)
    def counted(*args, **kwargs):
        calls.append(None)
        return body(*args, **kwargs)

    setattr(owner, method, counted)
    try:
        yield calls
    finally:
        setattr(owner, method, body)


@contextlib.contextmanager
def counting_programs() -> Iterator[list[str]]:
    """A list that grows by a name whenever JAX compiles a program, or loads one from the compilation cache."""
    programs: list[str] = []
    _listen()
    _LISTS.append(programs)
    try:
        yield programs
    finally:
        _LISTS[:] = [other for other in _LISTS if other is not programs]


_LISTS: list[list[str]] = []


@ft.cache
def _listen() -> None:
    """Once a process, for good: older JAX cannot be asked to stop."""

    def compiled(event: str, duration: float, **about) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            for programs in _LISTS:
                programs.append(str(about.get("fun_name")))

    monitoring.register_event_duration_secs_listener(compiled)


def by_numpy(function: Callable, *, static_argnames: Sequence[str] = ()) -> Callable:
    """`jax.jit`, of which NumPy carries out the program, operation by operation. For oracles, of which each runs once and on little:
    nothing is compiled, and no compiler has a part in them.
    """
    jitted, signature = jax.jit(function, static_argnames=static_argnames), inspect.signature(function)

    @ft.wraps(function)
    def run(*arguments, **more):
        given = signature.bind(*arguments, **more).arguments
        dynamic = {name: value for name, value in given.items() if name not in static_argnames}
        leaves = jax.tree.leaves(([dynamic[name] for name in signature.parameters if name in dynamic],))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return jitted(*arguments, **more)
        traced = jitted.trace(*arguments, **more)
        results = jax.device_put(carry_out(traced.jaxpr, leaves))
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), results)

    return run


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """`jax.disable_jit`, under which NumPy carries out the operations that it has: tests of many small things compile little."""
    compiled = dispatch.xla_primitive_callable

    def callable_of(primitive, **params):
        if primitive.name not in OPERATIONS:
            return compiled(primitive, **params)

        def run(*operands):
            made, _ = primitive.abstract_eval(*map(jax.typeof, operands), **params)
            if any(aval.weak_type for aval in jax.tree.leaves(made)):  # which no array of NumPy is
                return compiled(primitive, **params)(*operands)
            found = OPERATIONS[primitive.name](*map(np.asarray, operands), **params)
            put = lambda value, aval: jax.device_put(np.asarray(value, aval.dtype))
            return [*map(put, found, made)] if primitive.multiple_results else put(found, made)

        return run

    with jax.disable_jit(), pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        patch.setattr(dispatch, "xla_primitive_callable", callable_of)
        yield


def tokens_for(model: jc.Transformer, seq: int = 7, seed: int = 0):
    """A sequence that uses the vocabulary."""
    return jax.device_put(np.random.default_rng(seed).integers(0, model.d_vocab, seq).astype(np.int32))


def as_dtype(tree, dtype):
    """The same pytree with its floating leaves in `dtype`; by numpy, which compiles nothing."""
    cast = lambda x: jax.device_put(np.asarray(x).astype(dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(cast, tree)


@by_numpy
def logits_by_embedding(model: jc.Transformer, tokens: jax.Array) -> jax.Array:
    """`[seq d_vocab_out seq d_model]`: the Jacobian of a run's logits with respect to its embeddings, by reverse mode."""
    logits = lambda step: jc.run(model, tokens, edits={jc.Site(None, Kind.EMBED): jc.Add(step)})[0]
    return jax.jacrev(logits)(jnp.zeros((len(tokens), model.d_model), model.dtype))


def said(capsys, *command) -> dict:
    """What a command says with `--json`."""
    assert main([*map(str, command), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys, *command) -> str:
    """What a command prints."""
    assert main([*map(str, command), "--quiet"]) == 0
    return capsys.readouterr().out
