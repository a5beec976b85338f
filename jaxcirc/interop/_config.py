"""Hugging Face's config.json to a `Spec` and back: every attribute is used, ignored by name, or refused by name.

What is refused would change the computation: silence about it would give another model's numbers.
"""

from collections.abc import Collection, Mapping
from typing import Any

from ._attributes import check_known, IGNORED, ONLY, used_values, without_ignored
from ._spec import Spec
from .families import FAMILIES


# A model that also sees, and the architecture of the text model inside.
_INSIDE = {"gemma3": "gemma3_text"}
_CLASSES = {kind: family.classes for kind, family in FAMILIES.items()} | {
    "gemma3": ("Gemma3ForConditionalGeneration", "Gemma3Model")
}
_OUTER = frozenset(
    "text_config vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index tie_word_embeddings".split()
)
_REMEDY = "pass ignore_config={names} to from_pretrained or from_torch, or leave it out of the configuration"
# Near relatives, and what they compute otherwise.
_REFUSED = {
    "mixtral": "its MLPs are mixtures of experts",
    "qwen2_moe": "its MLPs are mixtures of experts",
    "qwen3_moe": "its MLPs are mixtures of experts",
    "qwen3_next": "not all of its layers are attention",
    "gemma3n": "its layers have embeddings of their own",
    "gemma3n_text": "its layers have embeddings of their own",
    "gemma4": "its layers differ in their heads",
    "gemma4_text": "its layers differ in their heads",
}


def read_config(config: Mapping[str, Any], source: str, ignore: Collection[str] = ()) -> Spec:
    """Reads the spec of a Hugging Face configuration, without the attributes that the caller has it `ignore`.

    **Raises:** `ValueError` for an architecture that is not supported, an attribute that is not known, or one that asks for another
    computation, each by name.
    """
    kind = _architecture(config, source)
    where = f"{source}: config.json"
    if kind in _INSIDE:
        config, kind = _text_config(config, where, ignore), _INSIDE[kind]
    family = FAMILIES[kind]
    config = without_ignored(config, ignore, {*family.used, *family.aliases}, where)
    values = used_values(config, family.used, family.only, where, family.aliases)
    known = (family.used, family.aliases, family.only, IGNORED, family.ignored)
    check_known(config, *known, source=where, remedy=_REMEDY)
    return family.read(values, source)


def write_config(spec: Spec) -> dict[str, Any]:
    """The inverse of `read_config`, for a spec that a Hugging Face layout can hold; of another, what it can say of it."""
    family = FAMILIES[spec.architecture]
    common = {
        "architectures": [family.classes[0]],
        "model_type": spec.architecture,
        "tie_word_embeddings": spec.tied,
        "vocab_size": spec.d_vocab,
        # Else transformers assumes ids of its own.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    return common | family.write(spec)


def class_of(model: Any) -> str:
    """Names the class of transformers that a model is of, by itself or through a class derived from it; else its own."""
    names = [cls.__name__ for cls in type(model).__mro__]
    return next((name for name in names if any(name in known for known in _CLASSES.values())), names[0])


def _architecture(config: Mapping[str, Any], source: str) -> str:
    classes = config.get("architectures") or []
    named = (kind for kind, names in _CLASSES.items() if set(classes) & set(names))
    kind = config.get("model_type") or next(named, None)
    if kind not in _CLASSES or not set(classes) <= set(_CLASSES[kind]):
        why = f", model_type = {kind!r}: {_REFUSED[kind]}" if kind in _REFUSED else ""
        raise ValueError(
            f"{source} is a {', '.join(classes) or kind or 'model of no named architecture'}{why}; supported are "
            f"{', '.join(name for names in _CLASSES.values() for name in names)}."
        )
    return kind


def _text_config(config: Mapping[str, Any], source: str, ignore: Collection[str]) -> dict[str, Any]:
    """Finds the configuration of the text model inside one that also sees."""
    inside = config.get("text_config")
    if not isinstance(inside, Mapping):
        raise ValueError(f"{source}: text_config = {inside!r}; expected an object, the text model's configuration.")
    config = without_ignored(config, ignore, _OUTER, source)
    used_values(config, {}, ONLY, source)
    check_known(config, _OUTER, ONLY, IGNORED, source=source, remedy=_REMEDY)
    tied = config.get("tie_word_embeddings")
    if tied is not None and inside.get("tie_word_embeddings", tied) != tied:
        raise ValueError(
            f"{source} says both tie_word_embeddings = {tied!r} and text_config.tie_word_embeddings = "
            f"{inside['tie_word_embeddings']!r}."
        )
    return dict(inside) | ({} if tied is None else {"tie_word_embeddings": tied})
