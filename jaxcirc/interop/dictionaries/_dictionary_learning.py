"""Dictionaries of the dictionary_learning library: `ae.pt`, with a `config.json` beside it.

Reference: github.com/saprmarks/dictionary_learning. Where a default of its loaders changes the latents, the same default is here, as an
option, and `dictionary.origin` says what was chosen. Its batch-wise BatchTopK, whose latents depend on the rest of the batch, is not
offered: such dictionaries run by their threshold.
"""

from collections.abc import Mapping

import numpy as np

from ...saes import AbstractActivation, Gated, JumpReLU, ReLU, SAE, TopK
from ._find import CHECKPOINTS
from ._parts import Parts, scale_biases, unit_decoder
from ._reader import Reader
from ._sites import agreed, of_folder, of_named_file, of_submodule, tinymodel_sites
from ._source import Source
from ._tensors import checked, listed, Table, warn


_LINEAR = {"encoder.weight": "d_sae d_in", "encoder.bias": "d_sae", "decoder.weight": "d_in d_sae"}
_PLAIN = {"W_enc": "d_in d_sae", "b_enc": "d_sae", "W_dec": "d_sae d_in", "b_dec": "d_in"}
CLASSES: dict[str, Table] = {
    "AutoEncoder": {"bias": "d_in", **_LINEAR},
    "AutoEncoderNew": {**_LINEAR, "decoder.bias": "d_in"},
    "GatedAutoEncoder": {
        "decoder_bias": "d_in",
        "encoder.weight": "d_sae d_in",
        "r_mag": "d_sae",
        "gate_bias": "d_sae",
        "mag_bias": "d_sae",
        "decoder.weight": "d_in d_sae",
    },
    "JumpReluAutoEncoder": {**_PLAIN, "threshold": "d_sae"},
    "AutoEncoderTopK": {"b_dec": "d_in", **_LINEAR, "k": "", "threshold": ""},
    "BatchTopKSAE": {"b_dec": "d_in", **_LINEAR, "k": "", "threshold": ""},
    "MatryoshkaBatchTopKSAE": {**_PLAIN, "k": "", "threshold": "", "group_sizes": "group"},
}
_OLD = {"AutoEncoderTopK": ("threshold",)}  # files from before thresholds
_OURS = {
    "encoder.bias": "b_enc",
    "b_enc": "b_enc",
    "W_enc": "W_enc",
    "W_dec": "W_dec",
    "bias": "b_dec",
    "b_dec": "b_dec",
    "decoder.bias": "b_dec",
    "decoder_bias": "b_dec",
    "r_mag": "r_mag",
    "gate_bias": "b_gate",
    "mag_bias": "b_mag",
    "threshold": "threshold",
}


def read(
    source: Source,
    *,
    dict_class: str | None = None,
    normalize_decoder: bool = True,
    scaled_features: bool = False,
    apply_b_dec_to_input: bool = False,
    use_threshold: bool = False,
) -> SAE:
    """Reads a dictionary from `ae.pt`.

    **Arguments:**

    - `dict_class`: its class, if no `config.json` says it and its tensors do not tell.
    - `normalize_decoder`: an `AutoEncoder`'s directions get norm 1 and its latents are scaled to match, as its own loader does unless
      told otherwise. It matters for those of the April update, whose directions are saved as they were trained.
    - `scaled_features`: an `AutoEncoderNew`'s latents times the norms of their directions, as its forward pass returns them; its
      `encode` does not.
    - `apply_b_dec_to_input`: whether a `JumpReluAutoEncoder` subtracts `b_dec` first. The file does not say.
    - `use_threshold`: an `AutoEncoderTopK` by its threshold, not by its `k`.
    """
    state, config, norm_factor = _unwrapped(source)
    kind = _class(state, config, dict_class, source)
    _check_option(kind, source, "AutoEncoderNew", scaled_features=scaled_features)
    _check_option(kind, source, "JumpReluAutoEncoder", apply_b_dec_to_input=apply_b_dec_to_input)
    _check_option(kind, source, "AutoEncoderTopK", use_threshold=use_threshold)
    sizes = {"d_in": config.get("activation_dim"), "d_sae": config.get("dict_size")}
    tensors, sizes = checked(state, CLASSES[kind], source, optional=_OLD.get(kind, ()), sizes=sizes)
    _check_groups(tensors, sizes, source)
    parts = scale_biases(_parts(tensors), norm_factor)
    chosen: dict[str, object] = {"norm_factor": norm_factor} if norm_factor != 1 else {}
    if kind == "AutoEncoder":
        chosen["normalize_decoder"] = normalize_decoder
    chosen |= {"scaled_features": True} if scaled_features else {}
    chosen |= {"use_threshold": True} if use_threshold else {}
    if scaled_features or (kind == "AutoEncoder" and normalize_decoder):
        parts = unit_decoder(parts)
    k = _k(tensors, config, source) if kind == "AutoEncoderTopK" else None  # the others run by their threshold
    return SAE(
        **source.leaves(parts["W_enc"], parts["b_enc"], parts["W_dec"], parts["b_dec"]),
        activation=source.activation(_activation(kind, parts, None if use_threshold else k, source)),
        site=_site(source, config),
        # Its trainers read the modules of the Hugging Face model that the configuration names, as they are.
        processing=() if config.get("lm_name") else None,
        centred=apply_b_dec_to_input if kind == "JumpReluAutoEncoder" else kind != "AutoEncoderNew",
        origin=f"{source.name} ({', '.join([kind, *(f'{name}={value}' for name, value in chosen.items())])})",
    )


def _unwrapped(source: Source) -> tuple[Mapping[str, object], dict, float]:
    """Takes apart the state dict, the trainer's configuration, and the factor that the biases still need.

    A backup from the middle of training holds the state dict inside, with biases for activations divided by the norm factor; a
    finished file has them multiplied already.
    """
    state, config, factor = source.state, trainer_config(source), 1.0
    if "ae" in state:
        inner = state["ae"]
        if not isinstance(inner, Mapping):
            raise ValueError(f"{source.name}: under `ae` expected a state dict, got a {type(inner).__name__}.")
        stored = state.get("config")
        config = {**config, **stored} if isinstance(stored, Mapping) else config
        factor = float(np.asarray(state.get("norm_factor") or 1.0))
        state = inner
    return state, config, factor


def trainer_config(source: Source) -> dict:
    """Reads what `config.json` says of the trainer; empty without one, or where it is some other configuration. That of a state from the
    midst of a training, in `checkpoints/`, is one folder up.
    """
    above = source.json("../config.json") if source.path.absolute().parent.name == CHECKPOINTS else None
    config = source.json("config.json") or above or {}
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        return {}
    buffer = config.get("buffer")
    return {**trainer, "io": buffer.get("io") if isinstance(buffer, dict) else None}


def is_here(source: Source) -> bool:
    """Says whether the file is one of dictionary_learning for certain, by its name, its configuration or as a backup of its training."""
    named = source.path.name.startswith("ae.") or source.path.stem.startswith("ae_")
    return named or bool(trainer_config(source)) or {"ae", "step"} <= set(source.state)


def classes_of(names: set[str]) -> list[str]:
    """Finds the classes that have exactly these tensors."""
    return [kind for kind, table in CLASSES.items() if set(table) - set(_OLD.get(kind, ())) <= names <= set(table)]


def _class(state: Mapping[str, object], config: dict, given: str | None, source: Source) -> str:
    named = given or config.get("dict_class")
    if named is not None:
        if named not in CLASSES:
            raise ValueError(
                f"{source.name}: dict_class {named!r} is not supported. The classes are {', '.join(CLASSES)}."
            )
        return named
    fitting = classes_of(set(state))
    if len(fitting) != 1:
        known = "; ".join(f"{kind}: {', '.join(table)}" for kind, table in CLASSES.items())
        what = (
            f"fits {' and '.join(fitting)}: say which, dict_class=…"
            if fitting
            else f"is none of dictionary_learning ({known})"
        )
        raise ValueError(f"{source.name} holds the tensors {listed(state)}, which {what}.")
    return fitting[0]


def _check_option(kind: str, source: Source, meant: str, **option: bool) -> None:
    for name, value in option.items():
        if value and kind != meant:
            raise ValueError(f"{source.name}: {name}=True is for the class {meant}, and this is of the class {kind}.")


def _parts(tensors: Parts) -> dict[str, np.ndarray]:
    parts = {_OURS[name]: array for name, array in tensors.items() if name in _OURS}
    if "encoder.weight" in tensors:
        parts |= {"W_enc": tensors["encoder.weight"].T, "W_dec": tensors["decoder.weight"].T}
    return {"b_enc": np.zeros_like(parts["W_enc"][0]), **parts}  # the gated encoder has no bias of its own


def _k(tensors: Parts, config: dict, source: Source) -> int | None:
    if "k" not in tensors:
        return None
    k, configured = int(tensors["k"]), config.get("k")
    # From the midst of a training that comes down to its k step by step, the file has that of then.
    if configured is not None and int(configured) != k and config.get("k_anneal_steps") is None:
        raise ValueError(
            f"{source.name}: k is {k} in the file and {configured} in config.json. Do the two belong together?"
        )
    return k


def _check_groups(tensors: Parts, sizes: Mapping[str, int], source: Source) -> None:
    if "group_sizes" in tensors and tensors["group_sizes"].sum() != sizes["d_sae"]:
        raise ValueError(
            f"{source.name}: `group_sizes` sum to {tensors['group_sizes'].sum()}, and there are {sizes['d_sae']} latents."
        )


def _activation(kind: str, parts: Parts, k: int | None, source: Source) -> AbstractActivation:
    if kind == "GatedAutoEncoder":
        return Gated(source.leaf(parts["r_mag"]), source.leaf(parts["b_gate"]), source.leaf(parts["b_mag"]))
    if kind == "AutoEncoderTopK" and k is not None:
        return TopK(k)
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        return ReLU()
    if "threshold" not in parts:
        raise ValueError(f"{source.name} has no `threshold`, which use_threshold=True asks for. Load it by its k.")
    threshold = np.broadcast_to(parts["threshold"], parts["b_enc"].shape)
    if kind != "JumpReluAutoEncoder" and parts["threshold"] < 0:
        warn(
            f"{source.name}: its threshold is {parts['threshold']:g}, so none was learnt, and it runs as a plain ReLU."
        )
    return JumpReLU(source.leaf(threshold))


def _site(source: Source, config: dict):
    named = str(config.get("submodule_name") or "")
    of_config = of_submodule(named) if config.get("io") in (None, "out") else None
    return agreed([("config.json", of_config), ("its folder", of_folder(source.path))], source.site, source.name)


def _fits(source: Source) -> bool:
    if is_here(source):
        return True
    names = set(source.state)
    if source.path.suffix == ".npz" or of_named_file(source.path.name) is not None:
        return False
    # The sparse MLPs of tinymodel have tensors of the same names as AutoEncoderNew.
    tinymodel = names == set(CLASSES["AutoEncoderNew"]) and tinymodel_sites(source.path.as_posix())[1] is not None
    return bool(classes_of(names)) and not tinymodel


READERS = (Reader("dictionary_learning", read, _fits),)
