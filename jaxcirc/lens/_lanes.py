"""Where the prompts of a fit are swept: on the default device, one after the other, or on those of a mesh.

Along `data` lie lanes: each takes a whole prompt, a few are swept ahead of the one that is taken into the means, and they are taken in
in their order. So means, checkpoints and the prompt at which a fit stops are those of one device. Along `tangents` lie the devices of a
lane, of which each sweeps some rows of the prompt's Jacobians. A device is sent programs of its own, as in `jaxcirc/jobs/_devices.py` and
for its reason: a program laid over all of them would wait for the slowest, and for the host, at every block.
"""

import queue
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from .._target import at_work
from ..jacobian._rules import ruled
from ..linear import free_memory
from ..models import Transformer
from ..runs import halving
from ._clusters import nearest_centre
from ._settings import LensSettings
from ._sweep import enter, Entering, prepare, Prompt, prompt_jacobians


DATA, TANGENTS = "data", "tangents"
Centres = dict[int, Float[Array, "cluster d_model"]] | None
Device = Any  # `jax.Device`, which is no type to type checkers
Lane = tuple[Device | None, ...]  # None is the default device, and moves nothing


class Swept(NamedTuple):
    """What a prompt brings, by layer: its Jacobians, `[path out in]`, for each average, or by way of each head; and the weight of each
    average among prompts.
    """

    jacobians: Mapping[int, Float[Array | np.ndarray, "path d_model d_model"]]
    weights: dict[int, Float[np.ndarray, " average"]]


def lanes_of(mesh: Mesh | None) -> list[Lane]:
    """The lanes of a mesh, each of its devices; without one a single lane.

    **Raises:** `ValueError` for other axes, or devices of another process.
    """
    if mesh is None:
        return [(None,)]
    names = getattr(mesh, "axis_names", None)
    if not isinstance(mesh, Mesh) or not names or not set(names) <= {DATA, TANGENTS}:
        got = f"one with the axes {names}" if isinstance(mesh, Mesh) else repr(mesh)
        raise ValueError(
            f"fit_lens: mesh is a jax.sharding.Mesh with the axes {DATA!r} and {TANGENTS!r}, or one of them; got {got}. "
            f"jax.make_mesh(({jax.local_device_count()},), ({DATA!r},)) has all devices of this process."
        )
    devices = mesh.devices.T if names[0] == TANGENTS else mesh.devices
    lanes = [tuple(lane) for lane in devices.reshape(mesh.shape.get(DATA, 1), mesh.shape.get(TANGENTS, 1))]
    if others := [device for lane in lanes for device in lane if device.process_index != jax.process_index()]:
        raise ValueError(
            f"fit_lens: the mesh has {others[0]}, which is of another process. Fit a part of the prompts in each process, and merge them: "
            "jc.JacobianLens.merge."
        )
    return lanes


def swept(
    model: Transformer,
    settings: LensSettings,
    prompts: Sequence[Int[np.ndarray, " _"]],
    centres: Centres,
    budget: int | None,
    lanes: Sequence[Lane],
) -> Generator[Swept, None, None]:
    """Sweeps prompts, in their order. `budget` is of a device."""
    given, held = ruled(model, settings.rule)
    if budget is None:
        # Devices of one host share its memory, and what is free of the first is as much as is free of any other.
        together = sum(map(len, lanes)) if _on_host(lanes) else 1
        budget = free_memory() // (4 * together)
    sweepers = [_Sweeper(model, given, held, settings, centres, budget, lane) for lane in lanes]
    if len(sweepers) == 1:
        yield from map(sweepers[0], prompts)
        return
    free: queue.SimpleQueue[_Sweeper] = queue.SimpleQueue()
    for sweeper in sweepers:
        free.put(sweeper)

    def one(tokens: Int[np.ndarray, " _"]) -> Swept:
        sweeper = free.get()
        try:
            return sweeper(tokens)
        finally:
            free.put(sweeper)

    waiting: deque[Future[Swept]] = deque()
    with ThreadPoolExecutor(many := at_work(len(sweepers)), thread_name_prefix="jaxcirc-lens") as pool:
        try:
            for tokens in prompts:
                waiting.append(pool.submit(one, tokens))
                if len(waiting) > many:  # one is ready for whoever is free first
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _on_host(lanes: Sequence[Lane]) -> bool:
    return all(device is not None and device.platform == "cpu" for lane in lanes for device in lane)


class _Part(NamedTuple):
    """A device, the model there that is swept, and which rows it sweeps."""

    device: Device | None
    model: Transformer
    rows: range


class _Sweeper:
    """Sweeps prompts on the devices of a lane. What it knows of memory it keeps from prompt to prompt.

    Only weights are put on a device; what meets them follows. A default device would be part of what programs are traced for.
    """

    def __init__(
        self,
        model: Transformer,
        given: Transformer,
        held,
        settings: LensSettings,
        centres: Centres,
        budget: int,
        lane: Lane,
    ):
        self.settings, self.held, self.budget = settings, held, max(budget, 1)
        self.model, self.centres = _placed((model, centres), lane[0])
        cuts = [round(model.d_model * i / len(lane)) for i in range(len(lane) + 1)]
        rows = [range(*cuts[i : i + 2]) for i in range(len(lane))]
        self.parts = [
            _Part(device, _placed(given, device), part) for device, part in zip(lane, rows, strict=True) if part
        ]

    def __call__(self, tokens: Int[np.ndarray, " seq"]) -> Swept:
        first = self.parts[0]
        prompt = prepare(self.model, tokens, self.settings.skip_first or 0)
        entering = enter(self.model, prompt, range(1, self.settings.target_layer + 1))
        weights, counts = _weights(prompt, entering, self.centres)
        if len(self.parts) == 1:
            found = self._of_part(first, prompt, entering, weights)
            # Those of one device stay there; the means lie on the default one.
            return Swept(found if first.device is None else jax.device_get(found), counts)
        with ThreadPoolExecutor(len(self.parts), thread_name_prefix="jaxcirc-rows") as pool:
            sweep = lambda part: jax.device_get(self._of_part(part, prompt, entering, weights))
            parts = list(pool.map(sweep, self.parts))
        return Swept({layer: np.concatenate([part[layer] for part in parts], axis=1) for layer in parts[0]}, counts)

    def _of_part(
        self, part: _Part, prompt: Prompt, entering: Entering, weights: dict[int, np.ndarray]
    ) -> dict[int, Float[Array, "path n d_model"]]:
        there, skipped = _placed(entering, part.device), self.settings.skip_first or 0

        def within(budget: int):
            self.budget = min(self.budget, budget)
            given, by_head = (part.model, there, prompt.valid, weights, self.held), self.settings.average == "head"
            return prompt_jacobians(*given, rows=part.rows, first=skipped, by_head=by_head, budget=budget)

        return halving(within, self.budget, "the bytes of its rows")


def _placed(tree, device: Device | None):
    return tree if device is None else jax.device_put(tree, device)


def _weights(
    prompt: Prompt, entering: Entering, centres: Centres
) -> tuple[dict[int, Float[np.ndarray, "average seq"]], dict[int, Float[np.ndarray, " average"]]]:
    """For each source layer the weights of the positions in each average of a prompt, and the weight of that average among prompts: 1, or
    by clusters how many positions it has.
    """
    layers = [layer - 1 for layer in entering.resid]
    if centres is None:
        weights = (prompt.valid / prompt.valid.sum())[None]
        return {layer: weights for layer in layers}, {layer: np.ones(1) for layer in layers}
    weights, counts = {}, {}
    for layer in layers:
        of = np.asarray(nearest_centre(entering.resid[layer + 1], centres[layer]))
        inside = (of == np.arange(len(centres[layer]))[:, None]) & prompt.valid
        counts[layer] = inside.sum(axis=1).astype(float)
        weights[layer] = inside / np.maximum(counts[layer], 1)[:, None]
    return weights, counts
