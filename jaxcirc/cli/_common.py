"""What the commands share: progress, the compilation cache, results on the screen."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from ..attribution import AbstractMethod, Gradient, IntegratedGradients
from ..circuits import Circuit


Subparsers = Any  # argparse keeps the class of add_subparsers' result to itself


def keep_compilations() -> None:
    """Keeps compiled programs on disk between commands, unless JAX was told where."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "jaxcirc" / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A `progress(done, of, stage)` that draws a bar on standard error; one bar a stage."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def report(done: int, of: int, stage: str) -> None:
        if stage not in bars:
            bars[stage] = tqdm(
                total=of, desc=f"{stage:<6}", bar_format="{desc} {bar:24} {n}/{total}  {elapsed}", file=sys.stderr
            )
        bars[stage].update(done - bars[stage].n)
        bars[stage].refresh()

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()


def add_circuit_options(parser: argparse.ArgumentParser, *, node_threshold: float, edge_threshold: float) -> None:
    """The options of every command that finds a circuit."""
    keep = "keep %s above this (%%(default)s)"
    parser.add_argument(
        "--node-threshold", type=float, metavar="X", default=node_threshold, help=keep % "nodes with |effect|"
    )
    parser.add_argument(
        "--edge-threshold", type=float, metavar="X", default=edge_threshold, help=keep % "edges with |weight|"
    )
    parser.add_argument(
        "--steps", type=int, default=10, metavar="N", help="integrated-gradients steps, 0 for the plain gradient"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def method_of(steps: int) -> AbstractMethod:
    """The method that `--steps` asks for."""
    return IntegratedGradients(steps) if steps else Gradient()


def show_circuit(circuit: Circuit, *, most: int = 12) -> None:
    """Prints the strongest nodes and edges."""
    meta, notes = circuit.meta, circuit.meta.get("annotations", {})
    print(
        f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges; metric {meta['clean_metric']:.3f}, effect {meta['total_effect']:+.3f}"
    )
    shares = meta["completeness"]
    if shares:
        low, high = min(shares.values()), max(shares.values())
        print(
            f"check: node effects sum to {low:.1%} to {high:.1%} of the total effect at the {len(shares)} residual sites"
        )
    print("\nstrongest nodes")
    for node in circuit.node_rows()[:most]:
        print(f"  {node.effect:+8.3f}  {node.node:<38} {notes.get(node.node, '')}")
    print("\nstrongest edges")
    for edge in circuit.edge_rows()[:most]:
        print(f"  {edge.weight:+8.3f}  {edge.source:<38} -> {edge.target}")


def print_json(circuit: Circuit, **more: Any) -> None:
    """Prints the circuit's meta and sizes as one JSON object."""
    sizes = {"nodes": len(circuit.nodes), "edges": len(circuit.edges)}
    print(
        json.dumps(
            {**sizes, **{k: v for k, v in circuit.meta.items() if k != "annotations"}, **more}, ensure_ascii=False
        )
    )
