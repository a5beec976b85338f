"""Circuits of subject-verb agreement on the shipped model, evaluated on prompts that they were not found on.

`python -m benchmarks.agreement` finds the circuit of each kind of sentence, runs ever smaller parts of it without the rest of the model,
by nodes and by edges, next to random parts of the same size, and writes `benchmarks/results/agreement.json`, a table and a picture. That
is the harder way: a node is one at all positions, and all that is not in the circuit is ablated. As Marks et al. 2024 (arXiv 2403.19647)
do it, positions are apart, and the first layers are left alone:
`python -m benchmarks.agreement --levels nodes --positions --start-layer 1 --name agreement-by-position`.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

import jaxcirc as jc


if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("simple", "nounpp", "rc", "within_rc")
THRESHOLDS = {"nodes": (0.0, 0.003, 0.01, 0.03, 0.1, 0.3), "edges": (0.0, 0.0003, 0.001, 0.003, 0.01, 0.03)}
RESULTS = Path(__file__).parent / "results"


def curves(kind: str, n: int, levels: list[str], positions: bool, start_layer: int) -> list[dict]:
    """One row a threshold, for each level."""
    model, saes, tokenizer = jc.from_pretrained("tiny-gpt2"), jc.load_saes("tiny-gpt2"), jc.load_tokenizer("tiny-gpt2")
    train, test = (jc.data.subject_verb(tokenizer, n, kind=kind, seed=seed) for seed in (0, 1))
    found = jc.discover(
        model,
        saes,
        train.clean,
        train.corrupt,
        train.metric(),
        node_threshold=0.0,
        edge_threshold=0.0 if "edges" in levels else None,
        aggregate="none" if positions else "sum",
        edges="integrated",
    )
    given = model, saes, test.clean, test.corrupt, test.metric()
    rows = []
    for level in levels:
        whole = found if level == "nodes" else found.above(node_threshold=0.01)
        thresholds = THRESHOLDS[level]
        curve = jc.recovery_curve(whole, *given, level=level, thresholds=thresholds, start_layer=start_layer)
        for row in curve.to_dict("records"):
            shares = {
                "share_of_nodes": row["nodes"] / len(found.nodes),
                "share_of_edges": row["edges"] / max(len(found.edges), 1),
            }
            rows.append({"kind": kind, "level": level, "start_layer": start_layer, **row, **shares})
    return rows


def table(rows: list[dict]) -> str:
    """The rows as markdown."""
    lines = [
        "| kind | by | from layer | threshold | nodes | edges | faithfulness (95 %) | completeness | random |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['kind']} | {row['level']} | {row['start_layer']} | {row['threshold']:g} | "
            f"{row['nodes']} ({row['share_of_nodes']:.1%}) | "
            f"{row['edges']} ({row['share_of_edges']:.1%}) | {row['faithfulness']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | "
            f"{row['completeness']:.3f} | {row['random']:.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(rows: list[dict], path: Path) -> "Figure":
    """The rows as curves, a panel for each kind and level."""
    panels: dict[str, list[dict]] = {}
    for row in rows:
        panels.setdefault(f"{row['kind']}, by {row['level']}, from layer {row['start_layer']}", []).append(row)
    return jc.draw_curves({name: pd.DataFrame(part) for name, part in panels.items()}, path, metric="logit difference")


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluates circuits of agreement on the shipped model.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument(
        "--prompts", type=int, default=32, metavar="N", help="to find circuits on, and to evaluate them on"
    )
    parser.add_argument("--levels", nargs="+", choices=THRESHOLDS, default=list(THRESHOLDS))
    parser.add_argument("--positions", action="store_true", help="nodes at different positions are different nodes")
    parser.add_argument("--start-layer", type=int, default=0, metavar="N", help="leave earlier layers alone")
    parser.add_argument("--name", default="agreement", help="of the files that are written")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    how = (arguments.prompts, arguments.levels, arguments.positions, arguments.start_layer)
    rows = [row for kind in arguments.kinds for row in curves(kind, *how)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (arguments.out / f"{arguments.name}.md").write_text(table(rows), encoding="utf-8")
    draw(rows, arguments.out / f"{arguments.name}.svg")
    print(table(rows))


if __name__ == "__main__":
    main()
