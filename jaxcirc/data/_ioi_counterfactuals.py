"""Indirect-object sentences with eight counterfactuals each, as the circuit-localisation benchmark has them."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from .._checks import check_path
from .._files import write_text, writing_file
from ._encode import fill, Pair, Sentence
from ._ioi import draw_sentences, encoded, ROLES, SWAPPED
from ._prompts import Prompts
from ._words import IOI


class _Change(NamedTuple):
    """What a counterfactual changes: two other names in all places; the order of the first clause; who the second clause is about, the
    other one of the two (`"IO"`), or a third (`"C"`).
    """

    names: bool = False
    order: bool = False
    second: str = "S"


COUNTERFACTUALS = {
    "abc": _Change(second="C"),
    "random_names": _Change(names=True),
    "s1_io_flip": _Change(order=True),
    "s2_io_flip": _Change(second="IO"),
    "s1_ioi_flip_s2_ioi_flip": _Change(order=True, second="IO"),
    "random_names_s1_ioi_flip": _Change(names=True, order=True),
    "random_names_s2_ioi_flip": _Change(names=True, second="IO"),
    "random_names_s1_ioi_flip_s2_ioi_flip": _Change(names=True, order=True, second="IO"),
}
_VERB = "jc.data.ioi_counterfactuals"


@dataclasses.dataclass(frozen=True, eq=False)
class IOICounterfactuals:
    """Indirect-object prompts, each with eight corrupt ones.

    **Attributes:**

    - `prompts`: `Prompts` by the name of the counterfactual. `clean`, `answer` (IO), `foil` (S) and `positions` are the same in all.
    - `rows`: the same as the benchmark's rows, `{"template", "metadata", "prompt", "choices", "answerKey", "abc_counterfactual": {…}, …}`.
    """

    prompts: dict[str, Prompts]
    rows: list[dict[str, Any]]

    def save(self, path: str | Path) -> None:
        """Writes the rows as JSON lines: `jc.data.load_prompts(path, tokenizer, counterfactual="abc")` reads them."""
        path = check_path("IOICounterfactuals.save: path", path)
        with writing_file(path) as aside:
            write_text(aside, "".join(json.dumps(row) + "\n" for row in self.rows))


def ioi_counterfactuals(
    tokenizer: Any,
    n: int,
    *,
    template: str = "mixed",
    seed: int,
    split: str = "all",
    bos: bool | None = None,
) -> IOICounterfactuals:
    """Indirect-object prompts with the eight counterfactuals of the circuit-localisation benchmark. In "A and B went to … . B gave … to":

    | name | corrupt prompt | right answer |
    |---|---|---|
    | `abc` | "A and B … . C gave" | none |
    | `s1_io_flip` | "B and A … . B gave": the position of the subject differs, its name does not | A |
    | `s2_io_flip` | "A and B … . A gave": both differ | B |
    | `s1_ioi_flip_s2_ioi_flip` | "B and A … . A gave": its name differs, the position does not | B |
    | `random_names`, and the last three with `random_names_` | the same with two other names | |

    The clean prompts are those of `jc.data.ioi` with the same seed and template.

    **Arguments:** as of `jc.data.ioi`.

    **Returns:** `IOICounterfactuals`: `.prompts["s2_io_flip"]`, the one that the benchmark evaluates on, and `.rows` in its schema.

    **Raises:** `ValueError` as `jc.data.ioi`.

    >>> made = jc.data.ioi_counterfactuals(tokenizer, 2, seed=0, template="ABBA")
    >>> tokenizer.decode(made.prompts["s2_io_flip"].corrupt[0])
    '<|endoftext|>Today, Kate and Mark met at the beach. Kate gave a snack to'

    **Reference:** Mueller et al. 2025, arXiv 2504.13151. Its sentences are others, and so are its words; of `abc` rows `choices` and
    `answerKey` are those of the clean prompt here.
    """
    drawn = draw_sentences(_VERB, tokenizer, n, template, seed, split)
    rng, rows, pairs = drawn.streams[-1], [], {name: [] for name in COUNTERFACTUALS}
    for sentence in drawn.sentences:
        others = [name for name in drawn.names if name not in (sentence["IO"], sentence["S"])]
        a, b, c = (others[int(i)] for i in rng.choice(len(others), 3, replace=False))
        changed = {name: _changed(sentence, change, (a, b, c)) for name, change in COUNTERFACTUALS.items()}
        clean = _changed(sentence, _Change(), (a, b, c))
        for name, made in changed.items():
            pairs[name].append(Pair(clean.sentence, made.sentence, " " + sentence["IO"], " " + sentence["S"]))
        rows.append(_row(sentence, clean, changed, (a, b, c)))
    return IOICounterfactuals({name: encoded(_VERB, tokenizer, each, bos) for name, each in pairs.items()}, rows)


class _Made(NamedTuple):
    """A sentence, and its two names: the one that is right behind it, and the other."""

    sentence: Sentence
    right: str
    other: str


def _changed(sentence: dict[str, str], change: _Change, random: tuple[str, str, str]) -> _Made:
    IO, S = random[:2] if change.names else (sentence["IO"], sentence["S"])
    order = SWAPPED[sentence["order"]] if change.order else sentence["order"]
    second = {"S": S, "IO": IO, "C": random[2]}[change.second]
    made = fill(IOI[order], sentence | {"IO": IO, "S1": S, "S2": second}, ROLES)
    return _Made(made, *((S, IO) if change.second == "IO" else (IO, S)))


def _row(
    sentence: dict[str, str], clean: _Made, changed: dict[str, _Made], random: tuple[str, str, str]
) -> dict[str, Any]:
    names = {"indirect_object": sentence["IO"], "subject": sentence["S"]}
    places = {"object": sentence["object"], "place": sentence["place"]}
    said = lambda made: {"prompt": made.sentence.text, "choices": [made.right, made.other], "answerKey": 0}
    first, second = ("IO", "S1") if sentence["order"] == "ABBA" else ("S1", "IO")
    blanks = {first: "{name_A}", second: "{name_B}", "S2": "{name_C}", "place": "{place}", "object": "{object}"}
    return {
        "template": fill(IOI[sentence["order"]], sentence | blanks, ()).text,
        "metadata": {
            **names,
            **places,
            **{f"random_{letter}": name for letter, name in zip("abc", random, strict=True)},
        },
        **said(clean),
        **{f"{name}_counterfactual": said(made) for name, made in changed.items()},
    }
