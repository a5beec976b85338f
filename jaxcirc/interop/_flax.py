"""Flax: a model inside an `nnx.Module`, models from the state of one, and parameters as Hugging Face's Flax models have them."""

import functools as ft
from collections.abc import Mapping
from typing import Any

from jaxtyping import DTypeLike

from ..models import Transformer
from ._build import arrays_of, build
from ._config import read_config
from ._save import hugging_face_spec
from ._tensors import read, write
from .families import table_of


def as_nnx(model: Transformer) -> Any:
    """An `nnx.Module` that holds `model` as data: `nnx.jit`, `split`, `merge` and `state` work on it, and `.model` is the model.

    >>> from flax import nnx
    >>> graph, state = nnx.split(jc.interop.as_nnx(model))
    >>> nnx.merge(graph, state).model.n_layers
    4
    """
    return _bridge()(model)


@ft.cache
def _bridge() -> type:
    """The class, made once, since NNX compiles anew for every class, and here, since Flax is imported only where it is used."""
    from flax import nnx

    class Bridge(nnx.Module):
        def __init__(self, model: Transformer):
            self.model = nnx.data(model)

        def __call__(self, *args: Any) -> Any:
            return self.model(*args)

    return Bridge


def to_flax_params(model: Transformer) -> dict[str, Any]:
    """Nested NumPy arrays under the names and in the layouts of Hugging Face's Flax models, `{"transformer": …}`: bit for bit the
    model's own. `flax.serialization.msgpack_serialize` of it is a `flax_model.msgpack`.

    **Raises:** `ValueError` as `to_torch_state_dict`.

    >>> jc.interop.to_flax_params(model)["transformer"]["h"]["0"]["attn"]["c_attn"]["kernel"].shape
    (384, 128)
    """
    from flax import traverse_util

    spec = hugging_face_spec(model)
    named = write(arrays_of(model), spec, kind="flax")
    head = table_of(spec).head.flax
    flat = {name if name == head else f"transformer.{name}": array for name, array in named.items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def from_nnx_state(state: Any, config: Mapping[str, Any], *, dtype: DTypeLike | None = None) -> Transformer:
    """A model from an NNX state, or any nested dict, whose parameters have the names and layouts of Hugging Face's Flax models.

    **Arguments:** - `config`: a Hugging Face configuration, as in `config.json`. - `dtype`: of the arrays; `None` keeps the embedding's.
    """
    from flax import nnx, traverse_util

    tree = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else state
    stored = {".".join(map(str, path)): value for path, value in traverse_util.flatten_dict(tree).items()}
    spec = read_config(config, "The NNX state's configuration")
    arrays = read(stored, spec, kind="flax", source="The NNX state")
    return build(spec, arrays, name="an NNX model", dtype=dtype or arrays["W_E"].dtype)
