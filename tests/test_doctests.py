"""The examples in docstrings, in the README and on the pages run, with `jc`, `jax`, `jnp`, `np`, and the shipped model at hand."""

import ast
import doctest
import functools as ft
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcirc as jc

from .helpers import REPOSITORY


PARSER = doctest.DocTestParser()
PAGES = [
    path
    for path in (REPOSITORY / "README.md", *sorted((REPOSITORY / ".github" / "docs").rglob("*.md")))
    if path.exists() and re.search(r"^```python\n>>>", path.read_text("utf-8"), re.M)
]
MODULES = [
    path
    for path in sorted((REPOSITORY / "jaxcirc").rglob("*.py"))
    if re.search(r"^\s*>>>", path.read_text("utf-8"), re.M)
]


# Made when an example first names them: the shipped model, six tokens for it, and its dictionaries.
AT_HAND: dict[str, Callable] = {
    "model": ft.cache(lambda: jc.from_pretrained("tiny-gpt2")),
    "tokenizer": ft.cache(lambda: jc.load_tokenizer("tiny-gpt2")),
    "tokens": ft.cache(lambda: jnp.asarray(np.arange(6) * 7 + 5, jnp.int32)),
    "saes": ft.cache(lambda: jc.load_saes("tiny-gpt2")),
}
SHIPPED = REPOSITORY / "weights" / "tiny-gpt2" / "model.safetensors"


def docstrings(source: str) -> list[tuple[str, str, int]]:
    """`(name, docstring, line)` of a module and all its classes and functions, read from the source: decorators do not matter."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            found.append((getattr(node, "name", "module"), text, node.body[0].lineno - 1))
    return found


def run(name: str, text: str, path: Path, line: int) -> int:
    """Runs the examples of one text, and returns how many there are."""
    test = PARSER.get_doctest(text, {"jc": jc, "jax": jax, "jnp": jnp, "np": np}, name, str(path), line)
    words = {word for example in test.examples for word in re.findall(r"\w+", example.source)}
    if not SHIPPED.exists() and (words & AT_HAND.keys() or "tiny" in words):
        pytest.skip("the shipped model is not in this checkout")
    test.globs.update({word: make() for word, make in AT_HAND.items() if word in words})
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)
    return len(test.examples)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_docstrings(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sum(run(name, text, path, line) for name, text, line in docstrings(path.read_text("utf-8"))) > 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_pages(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    assert run(path.stem, "\n\n".join(block for block in blocks if ">>>" in block), path, 0) > 0


def test_pages_have_code_that_parses():
    """What needs files or networks is not run; that it is Python is checked all the same."""
    for path in PAGES:
        for block in re.findall(r"^```python\n(?!>>>)(.*?)^```", path.read_text("utf-8"), re.M | re.S):
            ast.parse(block)
