"""Makes every picture that the pages show, where it lives, or all of them in one folder.

    python examples/figures.py [--out FOLDER] [NAME …]

Without names it makes all of them. Those of SmolLM2-135M need the file that `.ci/smollm2` fetches, and are left out, with a line that
says so, where it is not.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc


REPOSITORY = Path(__file__).parents[1]
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).parent)]
import indirect_objects  # noqa: E402
import smollm2  # noqa: E402
import smollm2_graph  # noqa: E402
from benchmarks import agreement  # noqa: E402
from benchmarks._plots import draw as draw_times  # noqa: E402


DOCS = REPOSITORY / ".github" / "docs"
RESULTS = REPOSITORY / "benchmarks" / "results"
MODEL = "tiny-gpt2"


@cache
def tiny() -> tuple[jc.Transformer, Any]:
    return jc.from_pretrained(MODEL), jc.load_tokenizer(MODEL)


@cache
def smol() -> tuple[jc.Transformer, Any]:
    return jc.from_pretrained(smollm2.FETCHED), jc.load_tokenizer(smollm2.FETCHED)


@cache
def prompts(**how: Any) -> jc.data.Prompts:
    return jc.data.ioi(tiny()[1], 16, seed=0, **how)


def texts() -> list[str]:
    return [tiny()[1].decode([int(token)]) for token in prompts().clean[0]]


def pairs(given: jc.data.Prompts) -> tuple[Any, ...]:
    return tiny()[0], given.clean, given.corrupt, given.metric()


def heads(path: Path) -> None:
    jc.draw_head_effects(jc.head_effects(*pairs(prompts())), path, metric="logit difference")


def positions(path: Path) -> None:
    effects = jc.head_effects(*pairs(prompts()))
    jc.draw_head_effects(effects, path, by="position", tokens=texts(), metric="logit difference")


def effects(path: Path) -> None:
    given = prompts()
    found = jc.direct_effects(tiny()[0], given.clean, given.answer, foils=given.foil)
    of_heads = np.asarray(found.heads)[..., -1].mean(0)
    title, metric = "Direct effects of heads at the last token", "logit difference"
    jc.draw_effects(of_heads, path, unit="logits", title=title, metric=metric, prompts=len(given))


def patching(path: Path) -> None:
    found = jc.activation_patch(*pairs(prompts()), sites=["resid_pre", "attn_out"])
    jc.draw_patching(found, path, tokens=texts(), metric="logit difference")


def paths(path: Path) -> None:
    given = prompts(flip=("IO",))
    model = tiny()[0]
    found = jc.path_patch(*pairs(given), receivers=["logits"])
    clean = jax.vmap(lambda tokens, metric: metric(jc.run(model, tokens)[0]))(given.clean, given.metric())
    jc.draw_path_patching({"to the logits": found - clean}, jc.component_graph(model), path, metric="logit difference")


def patterns(path: Path) -> None:
    jc.draw_patterns(tiny()[0], jnp.asarray(prompts().clean[0]), [(3, 1)], path, names=texts())


def weighted(path: Path) -> None:
    tokens = jnp.asarray(prompts().clean[0])
    jc.draw_patterns(tiny()[0], tokens, [(3, 1)], path, value_weighted=True, names=texts())


def repair(path: Path) -> None:
    tokens = jc.data.subject_verb(tiny()[1], 16, kind="rc", seed=0).clean
    jc.draw_self_repair(jc.self_repair(tiny()[0], tokens, jc.Resample.rolled(tokens)), path)


def norms(path: Path) -> None:
    J = jc.edge(tiny()[0], prompts().clean[0], "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post")
    jc.draw_jacobian_norms(J, path, tokens=texts())


def spectra(path: Path) -> None:
    model, layers = tiny()[0], [f"blocks.{layer}.hook_resid_post" for layer in range(tiny()[0].n_layers)]
    found = jc.jacobian.spectra(model, prompts().clean[0], "hook_embed", layers, rank=16, target_pos=[-1])
    jc.draw_spectra(found, path)


def lens(path: Path) -> None:
    model, tokenizer = tiny()
    fitted = jc.fit_lens(model, list(prompts().clean[1:]), skip_first=1)
    fitted.plot(model, prompts().clean[0], tokenizer, colour="probability", path=path)


def logit_lens(path: Path) -> None:
    model, tokenizer = tiny()
    jc.draw_lens(jc.logit_lens(model, prompts().clean[:1]), path, tokenizer=tokenizer, colour="rank")


def features(path: Path) -> None:
    ends = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"
    J = jc.feature_jacobian(tiny()[0], jc.load_saes(MODEL), prompts().clean[0], *ends, minimum=0.1)
    jc.draw_features(J, path)


@cache
def tiny_graph() -> jc.AttributionGraph:
    return jc.attribution_graph(tiny()[0], None, prompts().clean[0], max_nodes=60)


def graph(path: Path) -> None:
    tiny_graph().to_figure(path, tokens=texts(), most_edges=80)


def checks(path: Path) -> None:
    jc.draw_graph_checks(jc.check_graph(tiny_graph(), tiny()[0], None), path)


def curves(path: Path) -> None:
    given = jc.data.subject_verb(tiny()[1], 16, kind="simple", seed=0)
    saes = jc.load_saes(MODEL)
    of = (given.clean, given.corrupt, given.metric())
    found = jc.discover(tiny()[0], saes, *of, node_threshold=0.0, edge_threshold=None)
    curve = jc.recovery_curve(found, tiny()[0], saes, *of, thresholds=(0.0, 0.003, 0.01, 0.03, 0.1, 0.3))
    jc.draw_curves({"by nodes": curve}, path, metric="logit difference")


def circuit_curve(path: Path) -> None:
    given = pairs(jc.data.subject_verb(tiny()[1], 16, kind="simple", seed=0))
    scores = -np.asarray(jc.edge_attribution(*given)).mean(0)
    found = {by: jc.circuit_curve(*given, scores, by=by) for by in ("signed", "absolute")}
    jc.draw_circuit_curve(found, path, metric="logit difference")


DRAWN = (
    *(heads, positions, effects, patching, paths, patterns, weighted, repair, norms, spectra),
    *(lens, logit_lens, features, graph, checks, curves, circuit_curve),
)


def study(of: Callable[[], tuple[jc.Transformer, Any]]) -> Callable[[Path], None]:
    """Draws all pictures of a model's section on indirect objects, into the folder of `path`."""

    def make(path: Path) -> None:
        case = indirect_objects.case_of(*of(), indirect_objects.PROMPTS)
        indirect_objects.draw(case, indirect_objects.follow(case), path.parent, indirect_objects.stem_of(case.model))

    return make


def demo(path: Path) -> None:
    """The circuit of `jaxcirc demo`."""
    from tempfile import TemporaryDirectory

    from jaxcirc.cli import main as command

    with TemporaryDirectory() as folder:
        if command(["demo", "--out", f"{folder}/circuit", "--json"]):
            raise RuntimeError("jaxcirc demo failed")
        jc.Circuit.load(f"{folder}/circuit").to_figure(path)


def of_benchmark(name: str) -> Callable[[Path], None]:
    rows = RESULTS / f"{name}.json"
    return lambda path: agreement.draw(json.loads(rows.read_text("utf-8")), path)


def times(path: Path) -> None:
    draw_times(json.loads((RESULTS / "jacobians.json").read_text("utf-8"))["plots"], path)


def pictures() -> Iterator[tuple[str, Path, bool, Callable[[Path], None]]]:
    """Yields of each picture its name, where it lives, whether it needs SmolLM2, and what makes it."""
    for make in DRAWN:
        name = f"figure-{make.__name__.replace('_', '-')}"
        yield name, DOCS / f"{name}.svg", False, make
    yield "indirect-objects-tiny-gpt2", DOCS / "indirect-objects-tiny-gpt2.svg", False, study(tiny)
    yield "indirect-objects-smollm2-135m", DOCS / "indirect-objects-smollm2-135m.svg", True, study(smol)
    yield "smollm2-heads", DOCS / "smollm2-heads.svg", True, lambda path: smollm2.draw_heads(*smol(), path)
    yield "smollm2-graph", DOCS / "smollm2-graph.png", True, lambda path: smollm2_graph.draw_graph(*smol(), path)
    for name in ("agreement", "agreement-by-position"):
        yield name, RESULTS / f"{name}.svg", False, of_benchmark(name)
    yield "jacobians", RESULTS / "jacobians.svg", False, times
    yield "demo-circuit", DOCS / "demo-circuit.svg", False, demo


def main(arguments: list[str] | None = None) -> None:
    every = {name: rest for name, *rest in pictures()}
    parser = argparse.ArgumentParser(description="Makes every picture that the pages show.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones, of {', '.join(every)} (all)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for all of them (where each one lives)")
    asked = parser.parse_args(arguments)
    if unknown := [name for name in asked.names if name not in every]:
        parser.error(f"no picture is called {unknown[0]}; there are {', '.join(every)}")
    for name in asked.names or every:
        lives, needs_smollm2, make = every[name]
        path = lives if asked.out is None else asked.out / lives.name
        if needs_smollm2 and not smollm2.FETCHED.is_file():
            print(f"{name} is left out: there is no {smollm2.FETCHED}. .ci/smollm2 fetches it.")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path)
        print(name, flush=True)


if __name__ == "__main__":
    main()
