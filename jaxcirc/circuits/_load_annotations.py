"""What people noted on latents, from the feature-circuits project's files."""

import json
from pathlib import Path
from typing import Any

from ._circuit_file import NAMES, site_of


def load_annotations(path: str | Path) -> dict[str, str]:
    """Reads annotations of latents, one JSON object a line:
    `{"Component": "resid", "Layer": "5", "Feature": "3036", "Name": "resid_5/3036", "Annotation": "promotes singular verbs", "Notes": ""}`.

    `Name` says which latent it is, or the error if its number is `ε`; without it, `Component`, `Layer` and `Feature` do. `Notes` are
    added in brackets. What several lines say of one latent is joined; lines that say nothing, and the head of the table that some files
    have as a line, are left out.

    **Returns:** `{"blocks.5.hook_resid_post/3036": "promotes singular verbs"}`, for `circuit.annotate(annotations=…)`. The names have no
    position: in a circuit that keeps positions apart they are shown at all of them.

    **Raises:** `ValueError` with the line's number for a line that is not a JSON object or names no latent; `ValueError` if nothing is
    in the file.

    >>> import pathlib
    >>> _ = pathlib.Path("notes.jsonl").write_text('{"Name": "mlp_0/16150", "Annotation": "doctors"}')
    >>> jc.load_annotations("notes.jsonl")
    {'blocks.0.hook_mlp_out/16150': 'doctors'}
    """
    texts: dict[str, list[str]] = {}
    path = Path(path)
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            fields = _parse(line, where)
            if fields["name"] == "Name" and fields["annotation"] == "Annotation":  # the head
                continue
            node, text = _node(fields, where), _text(fields)
            if text and text not in texts.setdefault(node, []):
                texts[node].append(text)
    if not texts:
        raise ValueError(f"{path} holds no annotations. Expected one JSON object a line, with `Name` and `Annotation`.")
    return {node: "; ".join(said) for node, said in texts.items()}


def _parse(line: str, where: str) -> dict[str, str]:
    """The fields as text, with names in small letters: both `Notes` and `notes` are in use."""
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{where} is not JSON ({error.msg} at column {error.colno}). Expected one object a line."
        ) from None
    if not isinstance(fields, dict):
        raise ValueError(f"{where} is a JSON {type(fields).__name__}. Expected one object a line.")
    given: dict[str, Any] = {key.lower(): value for key, value in fields.items() if value is not None}
    keys = ("component", "layer", "feature", "name", "annotation", "notes")
    return {key: str(given.get(key, "")).strip() for key in keys}


def _node(fields: dict[str, str], where: str) -> str:
    layer = f"_{fields['layer']}" if fields["layer"] else ""
    name = fields["name"] or f"{fields['component']}{layer}/{fields['feature']}"
    submodule, _, unit = name.partition("/")
    site = site_of(submodule)
    if site is None or not (unit == "ε" or unit.isdecimal()):
        raise ValueError(
            f"{where} names {name!r}, which is no latent. Expected the name of a submodule ({NAMES}) and a number, as in "
            "`resid_5/3036`, or ε for the error."
        )
    return f"{site}/{'error' if unit == 'ε' else int(unit)}"


def _text(fields: dict[str, str]) -> str:
    annotation, notes = fields["annotation"], fields["notes"]
    return f"{annotation} ({notes})" if annotation and notes else annotation or notes
