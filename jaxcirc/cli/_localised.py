"""Circuits of edges between components, chosen by scores: what the commands about them share."""

import argparse


RANKINGS = ("signed", "absolute")


def add_how_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--how`."""
    parser.add_argument(
        "--how",
        choices=("best", "greedy"),
        default="best",
        help="take the best edges anywhere, or always the best into the circuit, from the logits backwards (%(default)s)",
    )
