"""The site says what there is: each public name has one entry, names that pages mention exist, tables are those of the code.

To write the table of sites anew: `python -m tests.test_site`.
"""

import functools as ft
import re

import pytest
import yaml

import jaxcirc as jc
from jaxcirc._sites import Kind, Site

from .helpers import REPOSITORY
from .test_public_api import public_names


DOCS = REPOSITORY / ".github" / "docs"
CONFIG = DOCS.parent / "mkdocs.yml"
SITES = re.compile(r"(<!-- sites: begin -->\n).*?(<!-- sites: end -->)", re.S)
pytestmark = pytest.mark.skipif(not CONFIG.exists(), reason="the site's pages are not in this checkout")


def found(path: str):
    """What a dotted name after `jaxcirc` or `jc` means."""
    return ft.reduce(getattr, path.split("."), jc)


def entries() -> list[str]:
    return [
        entry
        for page in sorted((DOCS / "reference").glob("*.md"))
        for entry in re.findall(r"^::: jaxcirc\.(\S+)$", page.read_text("utf-8"), re.M)
    ]


def test_each_public_name_has_one_entry():
    named: dict[int, list[str]] = {}
    for entry in entries():
        named.setdefault(id(found(entry)), []).append(entry)
    assert {key: several for key, several in named.items() if len(several) > 1} == {}, "entered twice"
    missing = sorted(name for name, value in public_names().items() if id(value) not in named)
    assert missing == [], "without an entry: put `::: jaxcirc.NAME` on a page of .github/docs/reference"


def test_names_on_pages_exist():
    mentioned: dict[str, str] = {}
    for page in (REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))):
        for name in re.findall(r"\bjc\.([A-Za-z_][\w.]*\w)", page.read_text("utf-8")):
            mentioned.setdefault(name, page.name)
    assert len(mentioned) > 100
    gone = {name: page for name, page in mentioned.items() if not exists(name)}
    assert gone == {}


def exists(path: str) -> bool:
    try:
        found(path)
    except AttributeError:
        return False
    return True


def test_messages_on_the_page_of_trouble_are_in_the_code():
    rows = re.findall(r"^\| (`.+?`) \|", (DOCS / "troubleshooting.md").read_text("utf-8"), re.M)
    pieces = {piece.strip() for row in rows for span in re.findall("`([^`]+)`", row) for piece in span.split("…")} - {
        ""
    }
    sources = "\n".join(path.read_text("utf-8") for path in (REPOSITORY / "jaxcirc").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources.replace("{version}", "0.10.2").replace("{backend}", "cpu"))
    assert len(pieces) > 5
    assert sorted(piece for piece in pieces if piece not in sources) == []


def table_of_sites() -> str:
    lines = [line.strip() for line in (Kind.__doc__ or "").splitlines() if line.strip().startswith("|")]
    return "\n".join(lines)


def test_the_table_of_sites_is_that_of_the_code():
    page = (DOCS / "sites.md").read_text("utf-8")
    assert page == with_sites(page), "run python -m tests.test_site"
    listed = re.findall(r"^\| `([\w.]+)` \|", table_of_sites(), re.M)
    of_kinds = [str(Site(0 if kind.in_block else None, kind)).removeprefix("blocks.0.") for kind in Kind]
    assert listed == of_kinds


def with_sites(page: str) -> str:
    return SITES.sub(lambda found: f"{found[1]}\n{table_of_sites()}\n\n{found[2]}", page)


def pages_of(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav if isinstance(nav, list) else nav.values()) for page in pages_of(part)]


def test_every_page_is_in_the_navigation_once():
    listed = pages_of(yaml.safe_load(CONFIG.read_text("utf-8"))["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text("utf-8").splitlines()) <= 200


if __name__ == "__main__":
    (DOCS / "sites.md").write_text(with_sites((DOCS / "sites.md").read_text("utf-8")), "utf-8")
