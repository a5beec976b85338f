"""Pages in HTML: one frame for all, and tokens as they may stand on any page, whatever they hold."""

import unicodedata
from collections.abc import Iterable
from html import escape
from pathlib import Path

from .._checks import check_path
from .._files import write_text, writing_file


STYLE = """
:root { color-scheme: light; }
body { font: 14px/1.5 system-ui, sans-serif; margin: 28px auto; padding: 0 24px; max-width: 1080px; color: #222; background: #fff; }
h1 { font-size: 20px; margin: 0 0 2px; }
h2 { font-size: 15px; margin: 28px 0 6px; } h3 { font-size: 13px; margin: 8px 0 2px; font-weight: 600; }
p { margin: 2px 0 8px; color: #555; max-width: 92ch; } code { font-size: .92em; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 1px 14px 1px 0; text-align: left; font-weight: 400; }
th { color: #777; font-size: 12px; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
.tables { display: flex; gap: 12px 56px; flex-wrap: wrap; align-items: flex-start; }
.text { font-family: ui-monospace, monospace; font-size: 13px; line-height: 1.75; overflow-wrap: anywhere; }
.token { white-space: pre-wrap; unicode-bidi: isolate; border-radius: 3px; padding: 1px 0; }
.sign { opacity: .55; } .more { color: #999; }
"""
SIGNS = {"\n": "↵", "\t": "⇥", "\r": "␍"}


def shown(token: str) -> str:
    """A token in HTML, every character to be seen: line ends and tabs as signs, and what prints nothing, or turns the direction of what
    follows, by its number.
    """
    if not token:
        return '<span class="sign">∅</span>'
    return "".join(map(_letter, token))


def _letter(letter: str) -> str:
    if letter in SIGNS:
        return f'<span class="sign">{SIGNS[letter]}</span>'
    if letter != " " and unicodedata.category(letter)[0] in "CZ":
        code = ord(letter)
        number = f"x{code:02x}" if code < 256 else f"u{code:04x}"
        return f'<span class="sign">\\{number}</span>'
    return escape(letter)


def token_span(token: str, *, title: str, style: str = "", attributes: str = "") -> str:
    """A token by itself, in whichever direction it is read, with what is said when it is pointed at."""
    styled = f' style="{escape(style)}"' if style else ""
    return f'<span class="token" dir="auto" title="{escape(title)}"{styled}{attributes}>{shown(token)}</span>'


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Columns that begin with `#` hold numbers; cells are HTML."""
    names = list(columns)
    kinds = [' class="number"' if name.startswith("#") else "" for name in names]
    head = "".join(f"<th{kind}>{escape(name.lstrip('#'))}</th>" for name, kind in zip(names, kinds, strict=True))
    lines = ("".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def page(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """One page that needs nothing else, and reaches for nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    scripts = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n'
        f"<body>\n{body}\n{scripts}</body></html>\n"
    )


def framed(html: str, height: int) -> str:
    """A page inside a notebook, which neither changes the other's looks."""
    return f'<iframe srcdoc="{escape(html)}" style="width:100%;height:{height}px;border:0" sandbox="allow-scripts"></iframe>'


def check_page(path: str | Path) -> Path:
    """`path` as a path. **Raises:** `ValueError` unless it is named as HTML."""
    path = check_path("path", path)
    if path.suffix not in (".html", ".htm"):
        raise ValueError(f"A page is an HTML file, and {path} does not end in .html. Name it so.")
    return path


def write_page(path: str | Path, html: str) -> None:
    """Writes a page, whole or not at all."""
    with writing_file(check_page(path)) as aside:
        write_text(aside, html)
