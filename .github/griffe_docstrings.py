"""What turns the house's docstrings into pages: a griffe extension, named in `mkdocs.yml`.

Docstrings are Markdown as one reads it in a terminal. Here examples become code blocks, lists that begin without an empty line get one,
and names such as `jc.edge` become links to their entries. The sources stay as they are.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe


REFERENCE = Path(__file__).parent / "docs" / "reference"
ENTRIES = frozenset(
    re.findall(r"^::: (\S+)$", "\n".join(page.read_text("utf-8") for page in REFERENCE.glob("*.md")), re.M)
)
NAME = re.compile(r"(?<![\[`])`jc\.([\w.]+?)(\(…?\))?`(?![\]`])")
SIZE = re.compile(r"\\[bB]ig[glr]?(?=[\\(\[|])")  # brackets of MathML grow by themselves
DISPLAYED = re.compile(r"^( *)(\$\$.+?\$\$)[.,:;]? *\n?", re.S | re.M)
ITEM = re.compile(r"(?<=[.:;*)]) - (?=`)")
BULLET = re.compile(r"\s*- ")


class Docstrings(griffe.Extension):
    """Rewrites each docstring once, when its object is collected."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_page(obj.docstring.value)


def as_page(text: str) -> str:
    text = DISPLAYED.sub(lambda found: f"\n{found[1]}{found[2]}\n\n{found[1]}", text)
    return "\n".join(_linked(_spaced(_fenced(_listed([*text.splitlines(), ""])))))


def _listed(lines: list[str]) -> Iterator[str]:
    """`**Arguments:** - `x`: … - `y`: …` with a line for each."""
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        yield from ITEM.sub(f"\n{indent}- ", line).split("\n")


def _fenced(lines: Iterator[str]) -> Iterator[str]:
    """Examples between fences, as they are indented."""
    inside = None
    for line in lines:
        if inside is None and line.lstrip().startswith(">>>"):
            inside = line[: len(line) - len(line.lstrip())]
            yield from ("", f"{inside}```pycon")
        if inside is not None and not line.strip():
            yield f"{inside}```"
            inside = None
        yield line


def _spaced(lines: Iterator[str]) -> Iterator[str]:
    """An empty line before the first item of a list that follows text."""
    before = ""
    in_list = fenced = False
    for line in lines:
        fenced ^= line.lstrip().startswith("```")
        bullet = bool(BULLET.match(line)) and not fenced
        if bullet and before.strip() and not in_list:
            yield ""
        in_list = bullet or (in_list and (not line.strip() or line.startswith(" ")))
        yield line
        before = line


def _linked(lines: Iterator[str]) -> Iterator[str]:
    fenced = False
    for line in lines:
        fenced ^= line.lstrip().startswith("```")
        yield line if fenced else SIZE.sub("", NAME.sub(_link, line))


def _link(found: re.Match[str]) -> str:
    path = f"jaxcirc.{found[1]}".replace("jaxcirc.frozen.", "jaxcirc.jacobian.frozen.")
    return f"[{found[0]}][{path}]" if path in ENTRIES else found[0]
