"""Hypotheses in files: TOML, with a table for each claim and a list of its children in it."""

import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .._checks import check_kind, check_path
from .._files import read_text, write_text
from .._sites import did_you_mean
from ._claim import Claim
from ._samplers import (
    AbstractSampler,
    Conditional,
    Exact,
    Fixed,
    Pool,
    Shared,
    Unconditional,
    UnconditionalTogether,
)


WORDS: dict[str, AbstractSampler] = {
    "exact": Exact(),
    "unconditional": Unconditional(),
    "together": UnconditionalTogether(),
}
# What a sampler's table has, by the key that tells which it is; what else may stand beside that.
TABLES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], AbstractSampler]]] = {
    "class": (("strict",), lambda table: Conditional(_listed(table["class"]), table.get("strict", False))),
    "fixed": ((), lambda table: Fixed(table["fixed"])),
    "pool": ((), lambda table: Pool(table["pool"])),
    "shared": (("sampler",), lambda table: Shared(_sampler(table.get("sampler", "unconditional")), table["shared"])),
}
KEYS = ("name", "sampler", "others", "through", "positions", "paths", "children")


def load_hypothesis(path: str | Path) -> Claim:
    """Reads a hypothesis from a TOML file.

    ```toml
    name = "logits"
    sampler = "exact"                        # also "unconditional", "together"

    [[children]]
    name = "a3.h1"
    positions = "end"                        # of the prompts; or a number, or a list
    sampler = { class = ["IO", "S2"] }       # what jc.Conditional takes: names of fields, or numbers of positions
    others = "unconditional"                 # the default
    paths = "direct"                         # the default; or "any"

    [[children.children]]
    name = "a2.h0"
    through = "q"
    sampler = { shared = "S", sampler = { class = "S2" } }
    ```

    Samplers are words or tables, `{ fixed = 3 }` and `{ pool = 4 }` too. With `strict = true` beside a class a prompt that is alone in its
    class is an error; otherwise it is drawn itself.

    **Raises:** `ValueError` for a file that is no TOML, and for keys and words that there are not, each with the claim's path.

    >>> claim = jc.Claim("logits", jc.Exact(), children=[jc.Claim("m3", jc.Conditional("end"))])
    >>> jc.scrubbing.save_hypothesis(claim, "hypothesis.toml")
    >>> jc.scrubbing.load_hypothesis("hypothesis.toml") == claim
    True
    """
    path = check_path("load_hypothesis", path)
    try:
        held = tomllib.loads(read_text(path, expected="a hypothesis in TOML"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}.") from None
    try:
        return _claim(held, "")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from None


def save_hypothesis(hypothesis: Claim, path: str | Path) -> None:
    """Writes a hypothesis to a TOML file, as `load_hypothesis` reads it.

    **Raises:** `ValueError` for a sampler that a file has no words for, such as one by a function.
    """
    check_kind("save_hypothesis", hypothesis, Claim, "a claim, as jc.Claim(name, sampler) makes one")
    write_text(check_path("save_hypothesis", path), "\n".join(_lines(hypothesis, "")) + "\n")


def _claim(table: Any, parent: str) -> Claim:
    check_kind(f"the claims under {parent or 'the file'}", table, dict, "tables, each under [[children]]")
    _check_keys(f"the claim under {parent}" if parent else "the first claim", table, KEYS, ("name", "sampler"))
    path = f"{parent}/{table['name']}"
    given = {key: table[key] for key in ("through", "positions", "paths") if key in table}
    if "others" in table:
        given["others"] = _sampler(table["others"], f"others of {path}")
    children = table.get("children", [])
    check_kind(f"children of {path}", children, list, "tables, each under [[children]]")
    return Claim(
        table["name"],
        _sampler(table["sampler"], f"sampler of {path}"),
        children=[_claim(child, path) for child in children],
        **given,
    )


def _sampler(given: Any, who: str = "sampler") -> AbstractSampler:
    if isinstance(given, str) and given in WORDS:
        return WORDS[given]
    kinds = [key for key in TABLES if key in given] if isinstance(given, dict) else []
    if not isinstance(given, dict) or len(kinds) != 1:
        words, tables = ", ".join(map(repr, WORDS)), ", ".join(f"{{ {key} = … }}" for key in TABLES)
        raise ValueError(f"{who}: expected {words}, or a table with one of {tables}; got {given!r}.")
    more, make = TABLES[kinds[0]]
    _check_keys(who, given, (kinds[0], *more))
    try:
        return make(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{who}: {error}") from None


def _check_keys(who: str, table: Mapping[str, Any], known: tuple[str, ...], needed: tuple[str, ...] = ()) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{who} has no {key!r}. {did_you_mean(key, known)}".rstrip())
    for key in needed:
        if key not in table:
            raise ValueError(f"{who} has no {key}. Expected {' and '.join(needed)}.")


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _lines(claim: Claim, parent: str) -> list[str]:
    """The lines of a claim, and those of its children, each behind the name of their list."""
    lines = [f"name = {_text(claim.name)}", f"sampler = {_words(claim.sampler, claim)}"]
    if claim.others != Unconditional():
        lines.append(f"others = {_words(claim.others, claim)}")
    for key in ("through", "positions", "paths"):
        value = getattr(claim, key)
        if value not in (None, "direct"):
            lines.append(f"{key} = {_text(value)}")
    here = f"{parent}.children" if parent else "children"
    for child in claim.children:
        lines += ["", f"[[{here}]]", *_lines(child, here)]
    return lines


def _words(sampler: AbstractSampler, claim: Claim) -> str:
    """A sampler as it is written. **Raises:** `ValueError` where it cannot be."""
    for word, known in WORDS.items():
        if sampler == known:
            return _text(word)
    if isinstance(sampler, Conditional) and isinstance(sampler.of, (str, int, tuple)):
        return f"{{ class = {_text(sampler.of)}{', strict = true' if sampler.strict else ''} }}"
    if isinstance(sampler, Fixed):
        return f"{{ fixed = {_text(sampler.datum)} }}"
    if isinstance(sampler, Pool):
        return f"{{ pool = {sampler.size} }}"
    if isinstance(sampler, Shared):
        return f"{{ shared = {_text(sampler.name)}, sampler = {_words(sampler.sampler, claim)} }}"
    raise ValueError(
        f"save_hypothesis: of {claim.label} the sampler {sampler!r} cannot be written: a file has no functions, arrays or classes of "
        "others. Use jc.Conditional(name) with names of fields."
    )


def _text(value: Any) -> str:
    """A text, a number or a list of such in TOML, whose texts are those of JSON."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
