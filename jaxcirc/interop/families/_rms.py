"""What Llama and its kin have in common: RMS norms, gated MLPs, rotary positions, shared keys and values."""

from collections.abc import Mapping
from typing import Any

from .._attributes import Inert, inert, ONLY
from .._keymaps import Key, linear, vector
from .._spec import Spec
from ._family import activation, check_shared, count, per_head, positive
from ._rope import ROPE, write_rotation


def _no_window(value: Any, config: Mapping[str, Any]) -> bool:
    """Whether the configuration says that no layer attends to a window, as one that came from a Qwen does."""
    return config.get("use_sliding_window") is False


NO_WINDOWS: dict[str, Inert] = {
    "max_window_layers": inert(None, does="layers from that one on attend to a window", also=_no_window),
    "sliding_window": inert(None, does="layers attend to a window of that width", also=_no_window),
    "use_sliding_window": inert(False, None, does="layers attend to a window"),
    "layer_types": inert(
        None,
        does="some layers attend to a window, or not as all others do",
        also=lambda value, _: isinstance(value, list | tuple) and set(value) <= {"full_attention"},
    ),
}
ONLY_RMS: dict[str, Inert] = ONLY | {
    "partial_rotary_factor": inert(1.0, None, does="a part of each head's coordinates rotates alone"),
    "rope_interleaved": inert(False, None, does="neighbouring coordinates rotate together"),
    "use_mrope": inert(False, None, does="positions have several coordinates"),
}
IGNORED_RMS = frozenset(
    ("hidden_dropout", "is_llama_config", "pretraining_tp", "cache_implementation", "max_sequence_length")
)


def used(**defaults: Any) -> dict[str, Any]:
    """The attributes that all of them have, with an architecture's defaults."""
    return {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,  # as many as heads
        "head_dim": None,  # as wide as fills the model
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **ROPE,
    } | defaults


def read_common(values: Mapping[str, Any], source: str, *, act: str = "hidden_act") -> dict[str, Any]:
    """Reads what these attributes say, as arguments of a spec."""
    n_heads, d_model, d_vocab = (
        count(values, name, source) for name in ("num_attention_heads", "hidden_size", "vocab_size")
    )
    n_kv_heads = n_heads if values["num_key_value_heads"] is None else count(values, "num_key_value_heads", source)
    check_shared(n_heads, n_kv_heads, "num_attention_heads", "num_key_value_heads", source)
    if values["head_dim"] is None:
        d_head = per_head(d_model, n_heads, "hidden_size", "num_attention_heads", source)
    else:
        d_head = count(values, "head_dim", source)
    n_layers = count(values, "num_hidden_layers", source)
    return {
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_head": d_head,
        "d_model": d_model,
        "d_mlp": count(values, "intermediate_size", source),
        "d_vocab": d_vocab,
        "d_vocab_out": d_vocab,
        "n_ctx": count(values, "max_position_embeddings", source),
        "act": activation(values, act, source),
        "eps": positive(values, "rms_norm_eps", source),
        "norm": "RMS",
        "gated": True,
        "causal": True,
        "tied": bool(values["tie_word_embeddings"]),
        "scales": (d_head**-0.5,) * n_layers,
        "windows": (None,) * n_layers,
    }


def write_common(spec: Spec, *, act: str = "hidden_act") -> dict[str, Any]:
    """The inverse."""
    return {
        "hidden_size": spec.d_model,
        "intermediate_size": spec.d_mlp,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.d_head,
        act: "gelu_pytorch_tanh" if spec.act == "gelu_new" else spec.act,
        "max_position_embeddings": spec.n_ctx,
        "rms_norm_eps": spec.eps,
        **write_rotation(spec),
    }


def read_layer_types(values: Mapping[str, Any], n_layers: int, derived: list[bool], source: str) -> list[bool]:
    """Says of each layer whether it attends to a window: as `layer_types` says, else as `derived`."""
    given = values["layer_types"]
    if given is None:
        return derived
    if (
        not isinstance(given, list | tuple)
        or len(given) != n_layers
        or not set(given) <= {"full_attention", "sliding_attention"}
    ):
        raise ValueError(
            f"{source}: layer_types = {given!r} is not supported; expected {n_layers} entries of 'full_attention' or "
            "'sliding_attention', one a layer."
        )
    return [kind == "sliding_attention" for kind in given]


def read_windows(values: Mapping[str, Any], slides: list[bool], source: str) -> tuple[int | None, ...]:
    """The width of each layer's window."""
    if not any(slides):
        return (None,) * len(slides)
    if values["sliding_window"] is None:
        raise ValueError(f"{source}: sliding_window = None, and layers attend to one; expected its width.")
    width = count(values, "sliding_window", source)
    return tuple(width if slide else None for slide in slides)


def write_windows(spec: Spec) -> dict[str, Any]:
    """The inverse, where all windows have one width."""
    return {
        "sliding_window": next((window for window in spec.windows if window is not None), None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in spec.windows],
    }


EMBEDDING = linear("W_E", "d_vocab d_model", "embed_tokens.weight", "d_vocab d_model")
HEAD = linear("W_U", "d_model d_vocab", "lm_head.weight", "d_vocab d_model")
FINAL = vector("ln_final.weight", "norm.weight")


def norm_rows(**names: str) -> tuple[Key, ...]:
    """Rows of the norms of a block, `ours=theirs`."""
    return tuple(vector(f"{ours}.weight", f"layers.{{layer}}.{theirs}.weight") for ours, theirs in names.items())


def _linears() -> tuple[Key, ...]:
    attention = {"Q": ("q_proj", "head"), "K": ("k_proj", "kv_head"), "V": ("v_proj", "kv_head")}
    rows = []
    for part, (name, heads) in attention.items():
        at = f"layers.{{layer}}.self_attn.{name}"
        rows += [
            linear(f"attn.W_{part}", f"{heads} d_model d_head", f"{at}.weight", f"({heads} d_head) d_model"),
            linear(f"attn.b_{part}", f"{heads} d_head", f"{at}.bias", f"({heads} d_head)"),
        ]
    at = "layers.{layer}.self_attn.o_proj"
    rows += [
        linear("attn.W_O", "head d_head d_model", f"{at}.weight", "d_model (head d_head)"),
        vector("attn.b_O", f"{at}.bias"),
    ]
    for ours, name, into, out in (
        ("gate", "gate_proj", "d_model", "d_mlp"),
        ("in", "up_proj", "d_model", "d_mlp"),
        ("out", "down_proj", "d_mlp", "d_model"),
    ):
        at = f"layers.{{layer}}.mlp.{name}"
        rows += [
            linear(f"mlp.W_{ours}", f"{into} {out}", f"{at}.weight", f"{out} {into}"),
            vector(f"mlp.b_{ours}", f"{at}.bias", axes=out),
        ]
    return tuple(rows)


LINEARS = _linears()
QK_NORMS = tuple(
    vector(f"attn.{part}_norm.weight", f"layers.{{layer}}.self_attn.{part}_norm.weight", axes="d_head") for part in "qk"
)
