"""`jaxcirc doctor`: is what this machine computes right?"""

import argparse
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np

from .. import data
from .._files import read_safetensors
from .._guard import check_backend
from .._precision import matmul_precision
from .._run import run
from .._sites import Kind, Site
from .._target import running_device, running_platform
from .._version import __version__
from ..attribution import edge_effects, Gradient, node_effects
from ..interop import from_pretrained, load_saes, shipped_folder
from ..interop._text_tokenizer import load_text_tokenizer
from ..jacobian import edge
from ..models import Transformer
from ..parts import Attention, Block, LayerNorm
from ._common import say_json, Subparsers
from ._screen import kept_compilations


MODELS = ("tiny-gpt2", "tiny-gpt-neo")


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="check that this machine computes right numbers",
        description="Checks versions, Jacobians against float64 without the compiler, the shipped models, and that edge effects are "
        "conserved.",
        epilog="example: jaxcirc doctor",
    )
    parser.set_defaults(command=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """Runs every check; exit code 1 if one fails."""
    checks: dict[str, Callable[[], str]] = {
        "jaxlib is not a version known to be wrong": _version,
        "attention's Jacobian by both engines, of a known size": _jacobian,
        **{f"{name} computes what PyTorch computed": lambda name=name: _golden(name) for name in MODELS},
        "edges out of each node sum to its effect": _conservation,
    }
    about = {
        "jaxcirc": __version__,
        "jax": jax.__version__,
        "jaxlib": jaxlib.version.__version__,
        "python": sys.version.split()[0],
        "device": running_device().device_kind,
        "matmul precision": matmul_precision(),
    }
    results = {}
    if not arguments.json:
        print(", ".join(f"{name} {value}" for name, value in about.items()))
    for what, check in checks.items():
        try:
            ok, result = True, check()
        except Exception as error:  # a doctor reports every failure, whatever it is, and goes on
            ok, result = False, f"{type(error).__name__}: {error}"
        results[what] = {"ok": ok, "said": result}
        if not arguments.json:
            print(f"{'ok  ' if ok else 'FAIL'}  {what}: {result}")
    folder, programs, size = kept_compilations()
    if arguments.json:
        kept = {"folder": None if folder is None else str(folder), "programs": programs, "bytes": size}
        say_json({**about, "checks": results, "compiled": kept})
    elif folder is None:
        print("compiled programs are not kept between commands")
    else:
        print(
            f"compiled programs are kept in {folder}: {programs}, {size / 1e6:z.0f} MB. Delete the folder to be rid of them; with "
            "JAX_ENABLE_COMPILATION_CACHE=0 none are kept, with JAX_COMPILATION_CACHE_DIR elsewhere."
        )
    return 0 if all(result["ok"] for result in results.values()) else 1


def _version() -> str:
    check_backend()
    return jaxlib.version.__version__


def _jacobian(seq: int = 64, d_model: int = 768, heads: int = 12) -> str:
    """Certificates of both engines for attention, at a size at which a known miscompilation shows."""
    model = _one_block(seq, d_model, heads)
    worst = 0.0
    for engine in ("autodiff", "structured"):
        J = edge(model, jnp.arange(seq), Site(0, Kind.RESID_PRE), Site(0, Kind.ATTN_OUT), engine=engine)
        certificate = J.certificate(jax.random.key(0), probes=1)
        worst = max(worst, certificate.error)
    return f"relative error {worst:z.1e} against float64, which NumPy computes"


def _one_block(seq: int, d_model: int, heads: int) -> Transformer:
    """Makes a random model of one attention layer."""
    rng = np.random.default_rng(0)
    random = lambda *shape: jnp.asarray(rng.standard_normal(shape) / shape[-1] ** 0.5, jnp.float32)
    d_head = d_model // heads
    into = lambda: (random(heads, d_model, d_head), random(heads, d_head))
    scale = jnp.asarray(d_head**-0.5, jnp.float32)
    attention = Attention(*into(), *into(), *into(), random(heads, d_head, d_model), random(d_model), scale)
    norm = LayerNorm(None, None, 1e-5, (Kind.LN1_SCALE, Kind.LN1_NORMALIZED))
    return Transformer(
        W_E=random(seq, d_model) * 10,
        W_pos=random(seq, d_model),
        blocks=(Block(norm, attention, None, None),),
        ln_final=None,
        untied_W_U=None,
        b_U=jnp.zeros(seq, jnp.float32),
        windows=(None,),
        causal=True,
        architecture="transformer_lens",
        name="random",
    )


def _golden(name: str) -> str:
    golden = read_safetensors(shipped_folder(name) / "golden.safetensors")
    model = from_pretrained(name)
    tokens, want = golden["tokens"], golden["logits"]
    logits = jax.jit(jax.vmap(lambda model, tokens: run(model, tokens)[0], in_axes=(None, 0)))(model, tokens)
    stored = slice(None, None, tokens.shape[1] // want.shape[1])  # every few positions
    return _compare(np.asarray(logits)[:, stored], want, 1e-5 if running_platform() == "cpu" else 1e-3)


def _conservation() -> str:
    model, saes, tokenizer = from_pretrained(MODELS[0]), load_saes(MODELS[0]), load_text_tokenizer(MODELS[0])
    prompts = data.subject_verb(tokenizer, 2, kind="rc", seed=0)
    arguments = (model, saes, prompts.clean, prompts.corrupt, prompts.metric())
    nodes = node_effects(*arguments, method=Gradient())
    edges = edge_effects(*arguments, nodes, threshold=0.0)
    got, want = [], []
    for site in saes:
        out = sum(edges.dense(pair).sum((1, 2)) for pair in edges.coo if pair[0] == site)
        got.append((out + np.asarray(edges.to_metric.get(site, 0.0))).ravel())
        want.append(np.asarray(nodes.nodes(site)).ravel())
    return _compare(np.concatenate(got), np.concatenate(want), 1e-3)


def _compare(got: np.ndarray, want: np.ndarray, limit: float) -> str:
    size = np.abs(want).max()
    if not size > 1e-3:
        raise ValueError(f"there is nothing to compare: the largest number is {size:z.2g}")
    error = np.abs(got - want).max() / size
    if not error <= limit:
        raise ValueError(f"the relative error is {error:z.2g}, more than {limit:g}")
    return f"relative error {error:z.1e}"
