"""What people noted on latents, from the feature-circuits project's files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._checks import check_path
from .._records import Problems, read_records, Record
from .._sites import Site
from ._circuit_file import NAMES, site_of


_FIELDS = ("component", "layer", "feature", "name", "annotation", "notes")
_ROWS = (
    "object a line, with `Name` and `Annotation`; a JSON list of such objects; one object from names to texts; or a table, CSV, TSV or "
    "parquet, with these columns"
)


_LATENT = f"A latent is the name of a submodule ({NAMES}) and a number, as in `resid_5/3036`, or ε for the error."


class _Unclear(ValueError):
    """A row that is no annotation of a latent."""


def load_annotations(path: str | Path) -> dict[str, str]:
    """Reads annotations of latents, one JSON object a line:
    `{"Component": "resid", "Layer": "5", "Feature": "3036", "Name": "resid_5/3036", "Annotation": "promotes singular verbs", "Notes": ""}`.

    `Name` says which latent it is, or the error if its number is `ε`; without it, `Component`, `Layer` and `Feature` do. A site may have
    its name here, too: `blocks.5.hook_resid_post/3036`. `Notes` are added in brackets. What several lines say of one latent is joined;
    lines that say nothing, and the head of the table that some files have as a line, are left out.

    The same rows are read from a JSON list, and from a table with these columns, CSV, TSV or parquet; and older files are one object from
    names to texts, `{"attn_1/5": "end of clause"}`. Which of them a file is, its beginning says and not its name; text is UTF-8.

    **Returns:** `{"blocks.5.hook_resid_post/3036": "promotes singular verbs"}`, for `circuit.annotate(annotations=…)`. The names have no
    position: in a circuit that keeps positions apart they are shown at all of them.

    **Raises:** `ValueError` that tells every row that is no object or names no latent, by its line, up to twenty of them; `ValueError` if
    nothing is in the file, or something else.

    >>> import pathlib
    >>> _ = pathlib.Path("notes.jsonl").write_text('{"Name": "mlp_0/16150", "Annotation": "doctors"}', encoding="utf-8")
    >>> jc.load_annotations("notes.jsonl")
    {'blocks.0.hook_mlp_out/16150': 'doctors'}
    """
    texts: dict[str, list[str]] = {}
    path, problems = check_path("load_annotations: path", path), Problems()
    for record in read_records(path, _FIELDS, f"one {_ROWS}"):
        if record.problem:
            problems.add(f"{record.where} {record.problem}")
            continue
        for fields in _annotations(record):
            try:
                node, text = _node(fields, record.where), _text(fields)
            except _Unclear as problem:
                problems.add(str(problem))
                continue
            if text and text not in texts.setdefault(node, []):
                texts[node].append(text)
    if problems.count:
        raise problems.error(path, f"Expected one {_ROWS}. {_LATENT}")
    if not texts:
        raise ValueError(f"{path} holds no annotations. Expected one JSON {_ROWS}.")
    return {node: "; ".join(notes) for node, notes in texts.items()}


def _annotations(record: Record) -> Iterator[dict[str, str]]:
    """Yields the annotations in a row, their fields as text under names in small letters: both `Notes` and `notes` are in use."""
    given = _lowered(record.fields)
    if given.keys() & set(_FIELDS):
        entries = [given]
    else:  # from names to texts, or to objects with texts
        about = lambda notes: _lowered(notes) if isinstance(notes, dict) else {"annotation": notes}
        entries = [{**about(notes), "name": name} for name, notes in record.fields.items()]
    for entry in entries:
        fields = {key: _as_text(entry.get(key)) for key in _FIELDS}
        if (fields["name"], fields["annotation"]) != ("Name", "Annotation"):  # the head
            yield fields


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_as_text, value))
    return "" if value is None else str(value).strip()


def _lowered(fields: dict[str, Any]) -> dict[str, Any]:
    return {name.lower(): value for name, value in fields.items()}


def _node(fields: dict[str, str], where: str) -> str:
    layer = f"_{fields['layer']}" if fields["layer"] else ""
    name = fields["name"] or f"{fields['component']}{layer}/{fields['feature']}"
    submodule, _, unit = name.partition("/")
    site, error = _site(submodule), unit in ("ε", "error")
    if site is None or not (error or unit.isdecimal()):
        raise _Unclear(f"{where} names {name!r}, which is no latent.")
    return f"{site}/{'error' if error else int(unit)}"


def _site(name: str) -> Site | None:
    try:
        return site_of(name) or Site.parse(name)
    except ValueError:
        return None


def _text(fields: dict[str, str]) -> str:
    annotation, notes = fields["annotation"], fields["notes"]
    return f"{annotation} ({notes})" if annotation and notes else annotation or notes
