"""What a configuration of Hugging Face can say of a model: it is written, read again, and compared."""

import dataclasses
from collections.abc import Callable

from ._config import read_config, write_config
from ._spec import Spec


def as_written(spec: Spec) -> tuple[Spec, list[str]]:
    """Reads what the configuration says that is written of `spec`, and tells what it cannot say: nothing, if the two are the same."""
    mlp = {} if spec.act is not None else {"act": "gelu_new", "d_mlp": spec.d_model}  # which it has to name
    try:
        said = read_config(write_config(dataclasses.replace(spec, **mlp)), "It")
    except ValueError as error:
        return spec, [str(error).removesuffix(".")]
    return said, [problem(spec, said) for differ, problem in _PROBLEMS if differ(spec, said)]


def _field(name: str) -> Callable[[Spec, Spec], bool]:
    return lambda spec, said: getattr(spec, name) != getattr(said, name)


def _norms(spec: Spec, said: Spec) -> str:
    if spec.norm is None:
        return "it has no norms"
    return (
        "its norms have no weights (fold_layer_norm)"
        if spec.norm.endswith("Pre")
        else f"its norms are {spec.norm} norms"
    )


def _scales_differ(spec: Spec, said: Spec) -> bool:
    return any(abs(a - b) > spec.precision * b for a, b in zip(spec.scales, said.scales, strict=True))


def _one(values: tuple[object, ...]) -> object:
    """The value that all layers have, or the values."""
    return f"{values[0]:g}" if len(set(values)) == 1 else values


def _windows(spec: Spec, said: Spec) -> str:
    return f"its local windows {spec.windows} differ" if any(said.windows) else "its attention is local"


def _rotations(spec: Spec, said: Spec) -> str:
    if not spec.rotations:
        return "its positions are learned"
    if not said.rotations:
        return "its positions rotate queries and keys"
    if None in spec.rotations:
        return "how its positions rotate queries and keys is not known (model.positions)"
    return f"its positions rotate queries and keys by {spec.rotations}, layer by layer"


def _attention_biases(names: frozenset[str]) -> frozenset[str]:
    return names & {"attn.b_Q", "attn.b_K", "attn.b_V"}


# When two specs differ, and how that is said.
_PROBLEMS: tuple[tuple[Callable[[Spec, Spec], bool], Callable[[Spec, Spec], str]], ...] = (
    (_field("norm"), _norms),
    (lambda spec, said: spec.act is None, lambda *_: "it has attention only"),
    (
        lambda spec, said: spec.act not in (None, said.act),
        lambda spec, said: f"its activation function is {spec.act}, and the name means {said.act} there",
    ),
    (
        _field("parallel"),
        lambda spec, said: f"its MLPs are {'beside' if spec.parallel else 'behind'} attention",
    ),
    (lambda spec, said: "b_U" in spec.biases - said.biases, lambda *_: "b_U is not zero"),
    (
        lambda spec, said: bool(_attention_biases(spec.biases - said.biases)),
        lambda *_: "queries, keys or values have biases that are not zero",
    ),
    (
        lambda spec, said: bool(
            {name for name in spec.biases - said.biases if name not in ("b_U", *_attention_biases(spec.biases))}
        ),
        lambda spec, said: (
            f"{', '.join(sorted(spec.biases - said.biases - _attention_biases(spec.biases) - {'b_U'}))} are not zero"
        ),
    ),
    (_field("causal"), lambda *_: "its attention is in both directions"),
    (
        _field("d_head"),
        lambda spec, said: f"d_head {spec.d_head} times {spec.n_heads} heads is not d_model {spec.d_model}",
    ),
    (_field("n_kv_heads"), lambda spec, said: f"its {spec.n_heads} heads share {spec.n_kv_heads} keys and values"),
    (_field("d_vocab_out"), lambda spec, said: f"it reads {spec.d_vocab} tokens and writes {spec.d_vocab_out}"),
    (_field("windows"), _windows),
    (
        _scales_differ,
        lambda spec, said: f"its attention scores are multiplied by {spec.scales}, not by {_one(said.scales)}",
    ),
    (_field("rotations"), _rotations),
    (_field("gated"), lambda spec, said: f"its MLPs are {'' if spec.gated else 'not '}gated"),
    (
        lambda spec, said: spec.norm is not None and spec.before != said.before,
        lambda spec, said: f"there are {'' if spec.before else 'no '}norms before its sublayers",
    ),
    (_field("behind"), lambda spec, said: f"there are {'' if spec.behind else 'no '}norms behind its sublayers"),
    (
        _field("qk_norm"),
        lambda spec, said: f"the norm of its queries and keys is {spec.qk_norm!r}, not {said.qk_norm!r}",
    ),
    (_field("offset"), lambda spec, said: f"{spec.offset:g} is added to the weights of its norms, not {said.offset:g}"),
    (_field("eps"), lambda spec, said: f"the epsilon of its norms is {spec.eps}"),
    (_field("cap"), lambda spec, said: f"its attention scores are capped at {spec.cap}, not at {said.cap}"),
    (_field("logit_cap"), lambda spec, said: f"its logits are capped at {spec.logit_cap}, not at {said.logit_cap}"),
    (
        _field("embed_scale"),
        lambda spec, said: f"its embedding is multiplied by {spec.embed_scale:g}, not by {said.embed_scale:g}",
    ),
)
