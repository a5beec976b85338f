"""A feature-circuits `.pt` file: unpickled without running anything, and checked."""

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._files import read_torch
from .._sites import by_site, Kind, Site


SparseAct = type("SparseAct", (), {"__module__": "activation_utils"})
"""Stands in for the class by which a file holds the effects of a site: its fields are read, and it has no methods."""

_KINDS = {"attn": Kind.ATTN_OUT, "mlp": Kind.MLP_OUT, "resid": Kind.RESID_POST}
_KEYS = ("examples", "nodes", "edges")
NAMES = "`embed`, `attn_0`, `mlp_0`, `resid_0`, and so on"


class CircuitFile(NamedTuple):
    """What a file holds: of each site the effects, the error's last, and of each pair of sites, `(up, down)`, a tensor of edges.

    `down` is `None` for the metric.
    """

    prompts: int
    effects: dict[Site, np.ndarray]  # [node], or [seq node]
    edges: dict[tuple[Site, Site | None], Any]


def site_of(name: str) -> Site | None:
    """Finds the site of a node's name, `embed` or `resid_3`; `None` for another name."""
    if name == "embed":
        return Site(None, Kind.EMBED)
    match = re.fullmatch(r"(attn|mlp|resid)_(\d+)", name)
    return Site(int(match[2]), _KINDS[match[1]]) if match else None


def read_circuit_file(path: Path) -> CircuitFile:
    """Reads a file without running anything in it.

    **Raises:** `ImportError` without PyTorch; `ValueError` if the file is damaged, is no circuit, or wants more than to be data.
    """
    held = _unpickled(path)
    fields: dict[str, Any] = held if isinstance(held, dict) else {}
    if lacking := [repr(key) for key in _KEYS if key not in fields]:
        raise ValueError(
            f"{path} holds a {_type(held)} without {', '.join(lacking)}; a circuit of feature-circuits has {', '.join(map(repr, _KEYS))}. "
            "Is it another file?"
        )
    if not isinstance(fields["examples"], list | tuple):
        raise ValueError(f"{path}: expected a list of prompts under 'examples', got {_type(fields['examples'])}.")
    effects = _effects(fields["nodes"], path)
    return CircuitFile(len(fields["examples"]), effects, dict(_edges(fields["edges"], effects, path)))


def _unpickled(path: Path) -> object:
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path.name} is a PyTorch file, and reading it takes PyTorch: pip install 'jaxcirc[torch]'. The circuit that it gives can "
            "be saved, Circuit.save(folder), and loaded without."
        ) from None
    try:
        with _allowing(torch.serialization, SparseAct), torch.sparse.check_sparse_tensor_invariants():
            return read_torch(path)
    except ValueError as error:
        if not isinstance(error.__context__, pickle.UnpicklingError):
            raise
        named = re.search(r"GLOBAL (\S+)", str(error.__context__))
        raise ValueError(
            f"{path} is a pickle that wants {f'`{named[1]}`' if named else 'more than tensors'}, and loading that could run code, so it "
            "is refused. A circuit of feature-circuits holds tensors, plain values and `activation_utils.SparseAct`."
        ) from None


@contextlib.contextmanager
def _allowing(serialization: Any, cls: type) -> Iterator[None]:
    """PyTorch's safe unpickler makes objects of `cls`, and sets their fields, too."""
    before = serialization.get_safe_globals()
    serialization.add_safe_globals([cls])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _effects(nodes: object, path: Path) -> dict[Site, np.ndarray]:
    if not isinstance(nodes, Mapping) or not nodes.keys() - {"y"}:
        raise ValueError(f"{path}: expected effects by name under 'nodes', of {NAMES}; got {_type(nodes)} without any.")
    effects = {_known(name, path): _effect(name, value, path) for name, value in nodes.items() if name != "y"}
    leading = {values.shape[:-1] for values in effects.values()}
    if len(leading) > 1:
        raise ValueError(f"{path}: the nodes differ in their positions, {sorted(leading)}. Expected all alike.")
    return by_site(effects)


def _effect(name: str, value: object, path: Path) -> np.ndarray:
    """Joins the effects of a node's latents and of its error, `[node]` or `[seq node]`, in float32 at least."""
    fields = vars(value) if isinstance(value, SparseAct) else {}
    acts, error = (_dense(fields.get(field)) for field in ("act", "resc"))
    if acts is None or error is None or error.shape != (*acts.shape[:-1], 1) or acts.ndim not in (1, 2):
        got = "no such pair" if acts is None or error is None else f"{list(acts.shape)} and {list(error.shape)}"
        raise ValueError(
            f"{path}: of node {name!r} expected a SparseAct with `act` [latent] and `resc` [1], or both with positions before, got {got}. "
            "Files of single prompts' effects are not circuits."
        )
    values = np.concatenate([acts, error], axis=-1)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: the effects of {name!r} hold NaN or infinite values. Compute the circuit again.")
    return values


def _dense(tensor: Any) -> np.ndarray | None:
    import torch

    return as_numpy(tensor.to_dense()) if isinstance(tensor, torch.Tensor) else None


def as_numpy(tensor: Any) -> np.ndarray:
    """Copies a tensor's values, half precision as float32."""
    import torch

    tensor = tensor.detach()
    return (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()


def _edges(
    edges: object, effects: dict[Site, np.ndarray], path: Path
) -> Iterator[tuple[tuple[Site, Site | None], Any]]:
    """Pairs of sites and their tensors, the empty ones left out."""
    if edges is None:
        return
    if not isinstance(edges, Mapping) or not all(isinstance(into, Mapping) for into in edges.values()):
        raise ValueError(f"{path}: under 'edges' expected {{up: {{down: tensor}}}} or None, got {_type(edges)}.")
    for up, into in edges.items():
        for down, tensor in into.items():
            where = f"{path}: the edges from {up!r} to {down!r}"
            source, target = _known(up, path), None if down == "y" else _known(down, path)
            for site in (source, target):
                if site is not None and site not in effects:
                    raise ValueError(f"{where} are of a node that the file has no effects of, `{site}`.")
            if target is not None and not source < target:
                raise ValueError(f"{where} run backwards. Expected the one that is computed first as the outer name.")
            shape = (*(() if target is None else effects[target].shape), *effects[source].shape)
            if not _is_empty(tensor, shape, where):
                yield (source, target), tensor


def _is_empty(tensor: Any, shape: tuple[int, ...], where: str) -> bool:
    """Says whether nothing was above the threshold. ValueError unless it is a tensor of this shape, which an empty one need not have."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout not in (torch.strided, torch.sparse_coo):
        raise ValueError(f"{where} are {_type(tensor)}; expected a tensor, sparse (COO) or dense.")
    if tensor.is_sparse and tensor._nnz() == 0:
        return True
    if tuple(tensor.shape) != shape:
        raise ValueError(
            f"{where} have shape {list(tensor.shape)}, expected {list(shape)}: first the nodes that they go to, then those that they come "
            "from."
        )
    return False


def _known(name: object, path: Path) -> Site:
    site = site_of(name) if isinstance(name, str) else None
    if site is None:
        raise ValueError(f"{path}: no node is called {name!r}. Expected {NAMES}.")
    return site


def _type(value: object) -> str:
    return type(value).__name__
