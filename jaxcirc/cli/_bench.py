"""`jaxcirc bench`: how fast Jacobians are here, against PyTorch on the same machine."""

import argparse
import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from ._common import Subparsers
from ._options import count, new_folder
from ._screen import silent


_PACKAGE = Path(__file__).parents[1]


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="time Jacobians against PyTorch",
        description="Times Jacobians and edges against PyTorch on this machine, after checking that both compute the same.",
        epilog="example: jaxcirc bench --rows attention-block mlp-block",
    )
    add_options(parser, Path("jaxcirc-bench"))
    parser.set_defaults(command=bench)


def bench(arguments: argparse.Namespace) -> int:
    """Runs the benchmarks, which say on standard error what they have done unless they are to be quiet."""
    run = load("__main__").run
    if not silent():
        return run(arguments)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        return run(arguments)


def add_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Adds the options of the benchmarks, which `python -m benchmarks` has too."""
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these, without plots (a wrong name lists all)")
    parser.add_argument(
        "--size", choices=("small", "xl"), default="small", help="GPT-2's sizes, or GPT-2 XL's for a GPU"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: that everything runs and is equal; times mean nothing"
    )
    parser.add_argument(
        "--repeats",
        type=count("--repeats", "rounds to time"),
        default=5,
        metavar="N",
        help="rounds in which each side has its turn (%(default)s)",
    )
    parser.add_argument(
        "--precision", choices=("highest", "tf32"), default="highest", help="of float32 products on GPUs (%(default)s)"
    )
    parser.add_argument(
        "--without",
        nargs="+",
        choices=("memory", "torch.compile"),
        default=(),
        help="leave out peak memory, for which each side is a process of its own, or compiled PyTorch: both take long",
    )
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=new_folder("--out"),
        default=str(out),
        help="folder for JSON, table and plot (%(default)s)",
    )
    parser.add_argument("--name", metavar="NAME", default="jacobians", help="what these files are called (%(default)s)")


def load(module: str) -> ModuleType:
    """Imports a module of the benchmarks: of the installed package, or of `benchmarks/` in a checkout.

    **Raises:** `ValueError` if the benchmarks are in neither place.
    """
    places = (_PACKAGE / "_benchmarks", _PACKAGE.parent / "benchmarks")
    folder = next((place for place in places if (place / "__main__.py").is_file()), None)
    if folder is None:
        raise ValueError(f"The benchmarks are neither at {places[0]} nor at {places[1]}: this installation lacks them.")
    name = "jaxcirc._benchmarks"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules[name] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{name}.{module}")
