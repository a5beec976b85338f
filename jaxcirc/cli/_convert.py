"""`jaxcirc convert`: a circuit of the feature-circuits project as one of ours."""

import argparse

from .._words import counted
from ..circuits import load_annotations, load_feature_circuit
from ..circuits._rows import note_of
from ._common import say_json, Subparsers
from ._options import existing_file, new_circuit, threshold


def add(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="read a circuit that feature-circuits saved",
        description="Reads a circuit file (.pt) of the feature-circuits project, and saves and draws the circuit. Takes PyTorch.",
        epilog="example: jaxcirc convert rc_train_n100_aggsum.pt --out circuit --annotations annotations.jsonl",
    )
    parser.add_argument("file", type=existing_file("file"), help="the .pt file")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        type=new_circuit("--out"),
        default="circuit",
        help="folder for the circuit (%(default)s)",
    )
    parser.add_argument(
        "--annotations",
        type=existing_file("--annotations"),
        metavar="FILE",
        help="what latents mean: JSON lines, JSON, CSV or TSV",
    )
    parser.add_argument("--model", metavar="MODEL", help="the model that it was found in, for `evaluate` to check")
    for what, strength in (("node", "|effect|"), ("edge", "|weight|")):
        parser.add_argument(
            f"--{what}-threshold",
            type=threshold(f"--{what}-threshold"),
            metavar="X",
            default=0.0,
            help=f"keep {what}s with {strength} above this (%(default)s)",
        )
    parser.set_defaults(command=convert)


def convert(arguments: argparse.Namespace) -> int:
    notes = load_annotations(arguments.annotations) if arguments.annotations else {}
    thresholds = {"node_threshold": arguments.node_threshold, "edge_threshold": arguments.edge_threshold}
    circuit = load_feature_circuit(arguments.file, **thresholds, model=arguments.model)
    if notes:
        circuit = circuit.annotate(annotations=notes)
    circuit.save(arguments.out)
    picture = arguments.out / "circuit.html"
    circuit.to_html(picture)
    noted = sum(bool(note_of(notes, node)) for node in circuit.node_rows())
    if arguments.json:
        sizes = {"nodes": len(circuit.nodes), "edges": len(circuit.edges), "annotated": noted}
        meta = {key: value for key, value in circuit.meta.items() if key != "annotations"}
        say_json({**sizes, **meta, "folder": str(arguments.out), "picture": str(picture)})
        return 0
    print(
        f"{counted(len(circuit.nodes), 'node')} ({noted} annotated), {counted(len(circuit.edges), 'edge')}, "
        f"{counted(circuit.meta.prompts or 0, 'prompt')}"
    )
    for note in circuit.meta.notes or ():
        print(f"note: {note}")
    print(f"saved to {arguments.out}, drawn in {picture}: open it in a browser.")
    return 0
