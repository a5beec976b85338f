"""TransformerLens: our names and layouts, whatever the model is made of."""

import dataclasses
import re

from .._keymaps import Key, Table
from .._spec import is_bias, Spec


_OUTSIDE = {"W_E": "embed.W_E", "W_pos": "pos_embed.W_pos", "W_U": "unembed.W_U", "b_U": "unembed.b_U"}
_NORM = re.compile(r"\.(weight|bias)$")


def lens_table(spec: Spec) -> Table:
    """The key table of a model of this make: a row for each of its arrays, of which biases may be lacking.

    OLMo 2's norms are behind the sublayers and are called as if they were before, and its queries and keys are normalised in one row.
    """
    first = {path: axes for path, axes in spec.arrays.items() if not path.startswith("blocks.")}
    block = {path.removeprefix("blocks.0."): axes for path, axes in spec.arrays.items() if path.startswith("blocks.0.")}
    outside = {path: _row(path, axes, _OUTSIDE.get(path, _short(path))) for path, axes in first.items()}
    embedding, head = outside.pop("W_E"), outside.pop("W_U")
    return Table(
        embedding,
        head,
        tuple(outside.values()),
        tuple(_in_block(name, axes, spec) for name, axes in block.items()),
        ignored=re.compile(r"blocks\.\d+\.attn\.(mask|IGNORE|rotary_sin|rotary_cos)"),
    )


def _in_block(name: str, axes: str, spec: Spec) -> Key:
    called = _short(name) if spec.before else _short(name).replace("_post.", ".")
    row = _row(name, axes, f"blocks.{{layer}}.{called}")
    return dataclasses.replace(row, torch_axes=f"({axes})") if "_norm." in name else row


def _row(ours: str, axes: str, name: str) -> Key:
    return Key((ours,), axes, name, axes, optional=is_bias(ours))


def _short(name: str) -> str:
    return _NORM.sub(lambda match: f".{match[1][0]}", name)
