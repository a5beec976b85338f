"""Folders of score files as the benchmark's leaderboard takes them."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from .._checks import check_choice, check_kind, check_path
from .._words import counted
from ._edge_scores import EdgeScores
from ._given import SIZES
from ._score_files import load_scores, save_scores, SUFFIXES


TASKS = ("ioi", "mcqa", "arithmetic-addition", "arithmetic-subtraction", "arc-easy", "arc-challenge")
MODELS = ("gpt2", "qwen2.5", "gemma2", "llama3", "interpbench")
NINE = SIZES[:-1]


def save_submission(
    folder: str | Path,
    task: str,
    model_name: str,
    circuits: EdgeScores | Sequence[EdgeScores],
    *,
    suffix: str = ".json",
) -> Path:
    """Writes what is submitted for one task and model: `FOLDER/ioi_gpt2/importances.json` with scores of all edges; or nine circuits, of at
    most .1, .2, .5, 1, 2, 5, 10, 20 and 50 percent of the edges, in a file each.

    **Arguments:** - `task`, `model_name`: by the benchmark's names, such as `"ioi"` and `"gpt2"`. - `circuits`: scores, or nine circuits in
    order of their sizes. - `suffix`: `".json"` or `".pt"`.

    **Returns:** the folder of this task and model.

    **Raises:** `ValueError` for another name, edges without a score, or a circuit that is larger than its size.
    """
    check_choice("save_submission: task", task, TASKS)
    check_choice("save_submission: model_name", model_name, MODELS)
    check_choice("save_submission: suffix", suffix, SUFFIXES)
    into = check_path("save_submission: folder", folder) / f"{task}_{model_name}"
    if isinstance(circuits, EdgeScores):
        _check_scored(circuits, "save_submission")
        files = {f"importances{suffix}": circuits}
    else:
        each = list(circuits)
        for circuit in each:
            check_kind("save_submission: circuits", circuit, EdgeScores, "scores, or a list of nine circuits")
        _check_nine(each, "save_submission")
        files = {f"circuit_{size:g}{suffix}": circuit for size, circuit in zip(NINE, each, strict=True)}
    into.mkdir(parents=True, exist_ok=True)
    for name, scores in files.items():
        save_scores(scores, into / name)
    return into


def load_submission(folder: str | Path) -> dict[tuple[str, str], EdgeScores | list[EdgeScores]]:
    """Reads a submission: of each folder `TASK_MODEL` in it the scores, or the nine circuits in order of their sizes.

    **Returns:** what was found, by task and model. That a submission takes two tasks and two models at least is warned of.

    **Raises:** `ValueError` for a folder that holds neither one file nor nine, or a circuit that is too large.
    """
    folder = check_path("load_submission: folder", folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder. Expected one with a folder for each task and model, such as ioi_gpt2."
        )
    found = {}
    for part in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        task, _, model = part.name.partition("_")
        if task in TASKS and model in MODELS:
            found[task, model] = _of_part(part)
    if not found:
        raise ValueError(
            f"{folder} has no folder such as ioi_gpt2: a task ({', '.join(TASKS)}), _, a model ({', '.join(MODELS)})."
        )
    tasks, models = ({name[i] for name in found} for i in (0, 1))
    if min(len(tasks), len(models)) < 2:
        warnings.warn(
            f"{folder} has {counted(len(tasks), 'task')} and {counted(len(models), 'model')}; a submission takes two of each.",
            stacklevel=2,
        )
    return found


def _of_part(part: Path) -> EdgeScores | list[EdgeScores]:
    files = sorted(file for file in part.iterdir() if file.suffix in SUFFIXES)
    if len(files) not in (1, len(NINE)):
        raise ValueError(f"{part} has {counted(len(files), 'file')}. Expected one with scores, or nine with circuits.")
    read = [load_scores(file) for file in files]
    if len(read) == 1:
        _check_scored(read[0], str(part))
        return read[0]
    read.sort(key=lambda scores: int(scores.kept.sum()))
    _check_nine(read, str(part))
    return read


def _check_scored(scores: EdgeScores, where: str) -> None:
    if not scores.scored:
        raise ValueError(
            f"{where}: a single file is of scores, and edges here have none. Give scores, or nine circuits."
        )


def _check_nine(circuits: Sequence[EdgeScores], where: str) -> None:
    if len(circuits) != len(NINE):
        raise ValueError(f"{where}: expected nine circuits, got {len(circuits)}.")
    for size, circuit in zip(NINE, circuits, strict=True):
        count, n_edges = int(circuit.kept.sum()), circuit.graph.n_edges
        if count > size * n_edges:
            raise ValueError(
                f"{where}: a circuit of at most {size:.1%} has {count} of {n_edges} edges. Leave some out."
            )
