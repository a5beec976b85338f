"""What a graph explains: tokens' logits at the last position, or directions of what the unembedding reads there."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._metrics import LogitDiff
from .._precision import wide
from .._run import check_token_ids
from .._tap import bare_tap
from ..models import Transformer
from ._linear import Linearised
from ._table import Directions, Outputs


MOST, MASS = 10, 0.95  # salient tokens: at most so many, of so much probability together
Targets: TypeAlias = (
    Sequence[int] | Int[Any, " n"] | Float[Any, "n d_model"] | Mapping[str, Float[Any, " d_model"] | LogitDiff] | None
)
_VERB = "attribution_graph: targets"
_WANTED = (
    "expected token ids [5, 17], directions [n d_model] of what the unembedding reads, the same by name {'name': direction}, or a "
    "difference of logits {'name': jc.LogitDiff(5, 17)}"
)


def check_targets(model: Transformer, targets: Any, last: int) -> None:
    """ValueError or TypeError unless targets are of a kind that there is; before anything is computed. `last` is the position that they
    read.
    """
    if targets is None:
        return
    if isinstance(targets, Mapping):
        _check_named(model, targets, last)
        return
    array = _as_array(targets)
    if array.ndim == 0 or len(array) == 0:
        raise ValueError(f"{_VERB}: {_WANTED}; got {targets!r}. Give at least one, in a list.")
    if np.issubdtype(array.dtype, np.integer):
        if array.ndim != 1:
            raise ValueError(
                f"{_VERB}: a target is one token, and here each has {array.shape[-1]}: ids of shape {list(array.shape)}. Give of each "
                "answer one token, for example its first."
            )
        check_token_ids(model, jnp.asarray(array), len(model.b_U))
        if len(np.unique(array)) < len(array):
            raise ValueError(f"{_VERB}: a token is given twice in {array.tolist()}. Give each once.")
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{_VERB}: {_WANTED}; got an array of {array.dtype}.")
    if array.ndim != 2:
        raise ValueError(
            f"{_VERB}: directions are [n d_model], got {list(array.shape)}. Write direction[None] for one."
        )
    for i, direction in enumerate(array):
        _check_direction(model, f"direction {i}", direction)


def _as_array(targets: Any) -> np.ndarray:
    if isinstance(targets, str) or (
        isinstance(targets, Sequence) and any(isinstance(each, str | bytes) for each in targets)
    ):
        raise TypeError(
            f"{_VERB}: {_WANTED}; got text, {targets!r}. Encode it: one token each, tokenizer.encode(' Mary')."
        )
    if isinstance(targets, LogitDiff) or not isinstance(targets, Sequence | np.ndarray | jax.Array):
        raise TypeError(f"{_VERB}: {_WANTED}; got a {type(targets).__name__}.")
    try:
        return np.asarray(targets)
    except ValueError:  # lists of lists of several lengths
        raise ValueError(
            f"{_VERB}: a target is one token, and some of these are lists of several. Give of each answer one token."
        ) from None


def _check_named(model: Transformer, targets: Mapping[Any, Any], last: int) -> None:
    if not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError(f"{_VERB}: {_WANTED}; got names {list(targets)!r}.")
    for name, direction in targets.items():
        if not isinstance(direction, LogitDiff):
            _check_direction(model, repr(name), direction)
            continue
        if any(np.ndim(ids) for ids in (*direction.token_ids(), direction.position)):
            raise ValueError(f"{_VERB}: {name!r} is of a batch of prompts, and a graph is of one. Give one answer.")
        if int(direction.position) not in (-1, last):
            raise ValueError(
                f"{_VERB}: {name!r} reads position {int(direction.position)}; a graph explains the last of the prompt, {last}. Cut the "
                "prompt behind the position."
            )
        for ids in direction.token_ids():
            check_token_ids(model, ids, len(model.b_U))


def _check_direction(model: Transformer, which: str, direction: Any) -> None:
    array = np.asarray(direction)
    if array.shape != (model.d_model,) or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"{_VERB}: {which} must be floating-point numbers of shape [{model.d_model}], d_model of {model.name}; got "
            f"{array.dtype}{list(array.shape)}."
        )
    if not np.isfinite(array).all() or not array.any():
        raise ValueError(f"{_VERB}: {which} is 0, or not finite.")


def make_outputs(linear: Linearised, targets: Targets | Directions) -> Outputs:
    """Makes directions, constants and weights of checked targets. A token's is its logit, before a cap, less the mean over all tokens."""
    ends, end = linear.model.without_blocks, linear.resid[linear.end][-1:]
    given = _directions(ends, targets)
    if given is not None:
        names, directions, constants = given.names, *(jnp.asarray(x, end.dtype) for x in given[1:])
        tokens, probability = np.arange(len(names)), np.full(len(names), 1 / len(names))
    else:
        chances = np.asarray(_probabilities(ends, end))
        tokens = _salient(chances) if targets is None else np.asarray(targets)
        directions, constants = _centred(ends, jnp.asarray(tokens, jnp.int32))
        names, probability = None, chances[tokens]
    read = _read_last(ends, end)
    values = np.asarray(_values(directions, read, constants))
    return Outputs(names, tokens, directions, constants, probability, values)


def _directions(ends: Transformer, targets: Targets | Directions) -> Directions | None:
    """The directions that targets are; `None` for tokens."""
    if targets is None or isinstance(targets, Directions):
        return targets
    if isinstance(targets, Mapping):
        vectors, constants = zip(*(_named(ends, direction) for direction in targets.values()), strict=True)
        return Directions(tuple(targets), jnp.stack(vectors), jnp.stack(constants))
    vectors = np.asarray(targets)
    if not np.issubdtype(vectors.dtype, np.floating):
        return None
    return Directions(
        tuple(f"direction {i}" for i in range(len(vectors))), vectors, np.zeros(len(vectors), vectors.dtype)
    )


def _salient(chances: Float[np.ndarray, " d_vocab"]) -> Int[np.ndarray, " output"]:
    """The most probable tokens until they make up `MASS`, at most `MOST`."""
    order = np.argsort(-chances, kind="stable")[:MOST]
    return order[: 1 + int(np.searchsorted(np.cumsum(chances[order]), MASS))]


def _named(ends: Transformer, direction: Any) -> tuple[Float[Array, " d_model"], Float[Array, ""]]:
    if not isinstance(direction, LogitDiff):
        dtype = ends.activation_dtype
        return jnp.asarray(direction, dtype), jnp.zeros((), dtype)
    rows, biases = _unembedding(ends, jnp.stack(direction.token_ids()))
    return (rows[0], biases[0]) if len(rows) == 1 else (rows[0] - rows[1], biases[0] - biases[1])


@jax.jit
def _probabilities(ends: Transformer, end: Float[Array, "1 d_model"]) -> Float[Array, " d_vocab"]:
    return jax.nn.softmax(ends.unembed(end, bare_tap())[0])


@jax.jit
def _read_last(ends: Transformer, end: Float[Array, "1 d_model"]) -> Float[Array, " d_model"]:
    return (end if ends.ln_final is None else ends.ln_final(end, bare_tap()))[0]


@jax.jit
def _values(directions, read, constants):
    return directions @ read + constants  # [output d_model] · [d_model] -> [output]


@jax.jit
def _unembedding(ends: Transformer, tokens: Int[Array, " output"]) -> tuple[Array, Array]:
    """The rows by which tokens are unembedded, and their biases."""
    own = ends.untied_W_U
    rows = ends.W_E[tokens] if own is None else own[:, tokens].T
    return wide(rows), wide(ends.b_U[tokens])


@jax.jit
def _centred(ends: Transformer, tokens: Int[Array, " output"]) -> tuple[Array, Array]:
    """The same less their means over all tokens."""
    rows, biases = _unembedding(ends, tokens)
    own = ends.untied_W_U
    mean = jnp.mean(wide(ends.W_E), axis=0) if own is None else jnp.mean(wide(own), axis=1)
    return rows - mean, biases - jnp.mean(wide(ends.b_U))
