"""Which nodes and edges a circuit has, as masks over a model's dictionaries."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from .._fingerprint import difference
from .._sites import Site
from ..attribution import fingerprints
from ..models import Transformer
from ..saes import AbstractDictionary
from ._circuit import Circuit
from ._rows import METRIC


class Into(NamedTuple):
    """The edges into the nodes of a site: of each target its number and position, and which nodes reach it, by site of the source.

    `pos` is -1 where positions were summed: the target is a node at every position, and so are its sources.
    """

    units: Int[np.ndarray, " target"]
    pos: Int[np.ndarray, " target"]
    reached: dict[Site, Bool[np.ndarray, "target source_seq node"]]


def check_same(circuit: Circuit, model: Transformer, saes: Mapping[Site, AbstractDictionary]) -> None:
    """ValueError if the circuit is of another model or of other dictionaries, naming both.

    They are told apart by what is in them where the circuit has recorded that, else by their names.
    """
    of, names, recorded = circuit.meta.model, circuit.meta.dictionaries, circuit.meta.fingerprints
    given = {str(site): sae.origin for site, sae in saes.items()}
    if recorded is None:
        model_is = "" if of not in (None, model.name) else None
        differing = {} if names is None else {s: "" for s in {*names, *given} if names.get(s) != given.get(s)}
    else:
        of_model, dictionaries = fingerprints(model, saes)
        model_is, known = difference(recorded["model"], of_model), recorded["dictionaries"]
        differing = dict.fromkeys(known.keys() ^ dictionaries.keys(), "")
        for site in known.keys() & dictionaries.keys():
            how = difference(known[site], dictionaries[site])
            differing |= {} if how is None else {site: how}
    if model_is is not None:
        raise ValueError(
            f"The circuit is of {of}, and the model is {model.name}{model_is}. Give the model that it was found in, processed alike."
        )
    if differing:
        site = min(differing)
        raise ValueError(
            f"The circuit was found with other dictionaries: at `{site}` with {(names or {}).get(site) or 'none'}, and here is "
            f"{given.get(site) or 'none'}{differing[site]}. Give those that it was found with."
        )
    for site, width in _widths(circuit).items():
        if site in saes and saes[site].d_sae != width:
            raise ValueError(
                f"The circuit was found with {width} latents at `{site}`, and the dictionary given there has {saes[site].d_sae}. Give the "
                "one that it was found with."
            )
    for name, site, unit in zip(circuit.nodes["node"], circuit.nodes["site"], circuit.nodes["unit"], strict=True):
        if Site.parse(site) not in saes or not 0 <= unit <= saes[Site.parse(site)].d_sae:
            raise ValueError(f"The circuit's node {name} is of no dictionary that was given.")


def _widths(circuit: Circuit) -> dict[Site, int]:
    """Says how many latents sites have, as far as is known: by the circuit's record, or by an error node, which comes after them."""
    errors = circuit.nodes[circuit.nodes["kind"] == "error"]
    widths = {**dict(zip(errors["site"], errors["unit"], strict=True)), **(circuit.meta.d_sae or {})}
    return {Site.parse(site): int(width) for site, width in widths.items()}


def node_masks(
    circuit: Circuit, saes: Mapping[Site, AbstractDictionary], seq: int
) -> dict[Site, Bool[np.ndarray, "seq node"]]:
    """Marks the node instances in the circuit, `[seq node]` at each site, whose last node is its error."""
    masks = {site: np.zeros((seq, sae.d_sae + 1), bool) for site, sae in saes.items()}
    for node in circuit.node_rows():
        masks[Site.parse(node.site)][slice(None) if node.pos is None else node.pos, node.unit] = True
    return masks


def edge_masks(circuit: Circuit, saes: Mapping[Site, AbstractDictionary], seq: int) -> dict[Site | None, Into]:
    """Sorts the edges of the circuit by site of their target; `None` is the metric."""
    nodes = {
        node.node: (Site.parse(node.site), node.unit, -1 if node.pos is None else node.pos)
        for node in circuit.node_rows()
    }
    into: dict[Site | None, dict[tuple[int, int], list[tuple[Site, int, int]]]] = {}
    for edge in circuit.edge_rows():
        for end in {edge.source, edge.target} - {METRIC}:
            if end not in nodes:
                raise ValueError(f"The circuit has an edge {edge.source} -> {edge.target}, and no node {end}.")
        site, *target = (None, 0, -1) if edge.target == METRIC else nodes[edge.target]
        into.setdefault(site, {}).setdefault((target[0], target[1]), []).append(nodes[edge.source])
    return {site: _into(targets, saes, seq) for site, targets in into.items()}


def _into(targets: dict[tuple[int, int], list[tuple[Site, int, int]]], saes, seq: int) -> Into:
    reached = {}
    for row, sources in enumerate(targets.values()):
        for site, unit, pos in sources:
            if site not in reached:
                rows = seq if pos >= 0 else 1
                reached[site] = np.zeros((len(targets), rows, saes[site].d_sae + 1), bool)
            reached[site][row, max(pos, 0), unit] = True
    units, positions = (np.array(column, int) for column in zip(*targets, strict=True))
    return Into(units, positions, reached)
