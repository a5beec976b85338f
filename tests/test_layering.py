"""The floors hold, nothing imports in a circle, and importing the library is light."""

import os
import subprocess
import sys

import pytest

from .helpers import REPOSITORY


HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "flax",
    "pandas",
    "pyarrow",
    "huggingface_hub",
    "matplotlib",
    "bokeh",
    "graphviz",
    "optax",
    "scipy",
)


def python(code: str, **environment: str) -> str:
    """What a fresh interpreter prints."""
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"} | environment
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_is_light():
    loaded = python(f"import sys, jaxcirc; print(*set({HEAVY}) & set(sys.modules))")
    assert loaded == "", f"import jaxcirc imports {loaded}"


def test_importing_is_quick():
    """In half as long again as JAX's own import, in processor time and the least of three, so that a busy machine does not matter. The
    first leaves its bytecode, as an installed package has it.
    """
    code = (
        "import time; clock = time.process_time; begin = clock(); import jax, numpy; middle = clock(); import jaxcirc; "
        "print((clock() - middle) / (middle - begin))"
    )
    assert 0 < min(float(python(code, PYTHONDONTWRITEBYTECODE="")) for _ in range(3)) < 1.5


def test_importing_changes_no_setting():
    code = (
        "import jax; before = dict(jax.config.values); import jaxcirc; "
        "print([name for name, value in before.items() if jax.config.values[name] != value])"
    )
    assert python(code) == "[]"


def test_floors(monkeypatch):
    pytest.importorskip("importlinter", reason="the floors are checked where import-linter is installed")
    from importlinter.cli import lint_imports

    monkeypatch.chdir(REPOSITORY)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_no_import_circle():
    """Not even one that only type checkers see, or that an import inside a function hides."""
    grimp = pytest.importorskip("grimp", reason="imports are looked at where import-linter is installed")
    networkx = pytest.importorskip("networkx")
    graph = grimp.build_graph("jaxcirc", exclude_type_checking_imports=False, cache_dir=None)
    imports = networkx.DiGraph((m, n) for m in graph.modules for n in graph.find_modules_directly_imported_by(m))
    assert len(imports) > 100
    assert [sorted(circle) for circle in networkx.strongly_connected_components(imports) if len(circle) > 1] == []
