"""One dictionary from a file, in whatever format it is."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from jax.typing import DTypeLike

from ..._sites import did_you_mean, Part, Site
from ...saes import AbstractDictionary
from ...saes._processing import check_steps
from . import _dictionary_learning, _openai, _plain, _saelens, _sparsify
from ._source import dictionary_file, find, Source
from ._tensors import listed


READERS: dict[str, Callable[..., AbstractDictionary]] = {
    "saelens": _saelens.read,
    "dictionary_learning": _dictionary_learning.read,
    "sparsify": _sparsify.read,
    "openai": _openai.read,
    "hook_z_kk": _plain.read_hook_z_kk,
    "e2e": _plain.read_e2e,
    "sparse_mlp": _plain.read_sparse_mlp,
    "topk_pt": _plain.read_topk_pt,
    "transcoder_pt": _plain.read_transcoder_pt,
}


# The formats whose files have a name that no other has.
_NAMED = {"sae_weights.safetensors": "saelens", _sparsify.FILE: "sparsify"}


def load_sae(
    path_or_id: str | Path,
    *,
    format: str = "auto",
    site: Site | str | None = None,
    processing: Iterable[str] | None = None,
    dtype: DTypeLike | None = None,
    revision: str | None = None,
    **options: object,
) -> AbstractDictionary:
    """Loads one sparse dictionary: an SAE or a transcoder.

    **Arguments:**

    - `path_or_id`: a file or folder, or a Hub id, `repo/name` or `repo/name:folder` (with `revision`).
    - `format`: `"auto"` goes by the files and the names of the tensors.
      - `"saelens"`: cfg.json and sae_weights.safetensors of SAELens 3 to 6, of its predecessor sae_training (whose hook points may be
        templates, `blocks.{layer}.hook_resid_pre` with `hook_point_layer`), or both in one `.pt` file, `{cfg, state_dict}`. A
        checkpoint from the training of a batchtopk or matryoshka_batchtopk dictionary is read as the JumpReLU that it runs as, with the
        threshold that was learned so far.
      - `"sparsify"`: cfg.json and sae.safetensors of EleutherAI's sparsify, topk or groupmax, transcoders and skip connections too. The
        folder's name is the module that it was trained on and gives the site: `layers.5.mlp`, `h.5`, `gpt_neox.layers.5.attention`.
      - `"dictionary_learning"`: ae.pt. `"openai"`: OpenAI's GPT-2 autoencoders. `"hook_z_kk"`: Kissane et al.'s SAEs of attention
        outputs. `"e2e"`: Apollo's. `"sparse_mlp"`: noanabeshima's tinymodel. `"topk_pt"`: prestoj's. `"transcoder_pt"`: Dunefsky et
        al.'s. Files of tensors may be safetensors too, where PyTorch's own format takes the `torch` extra.

      Attributes of a configuration that are of the training are passed over; one that would change what the dictionary computes and is
      not supported is refused by name.
    - `site`: where it belongs, if the files do not say it, or say it wrongly.
    - `processing`: the `process_weights` steps of the model that it was trained on, in place of what the format says.
    - `dtype`: of the arrays; by default as stored, half precision as float32.
    - `options`: of the format: `reads`, `norm_scaling_factor`, `normalize_decoder`, `ignore_config` (saelens); `reads`,
      `ignore_config` (sparsify); `dict_class`,
      `normalize_decoder`, `scaled_features`, `apply_b_dec_to_input`, `use_threshold` (dictionary_learning); `omit_dead`,
      `activation`, `k` (openai); `reads` (sparse_mlp, transcoder_pt); `k` (topk_pt).

    **Returns:** a dictionary with `.site` (`None` if nothing says it), `.processing`, and `.origin`, which names the file and the
    choices made.

    **Raises:** `ValueError` for files of no known format, tensors that are missing, unknown, of a wrong shape or not finite, a
    configuration that disagrees with them or that is not supported, a pickle that is more than weights; `TypeError` for an option
    that the format does not have.

    >>> import tempfile
    >>> W = jnp.eye(4, 8)
    >>> sae = jc.saes.SAE(W, jnp.zeros(8), W.T, jnp.zeros(4), jc.saes.TopK(2), jc.Site(0, jc.Kind.MLP_OUT))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jc.save_sae(sae, f"{folder}/sae")
    ...     loaded = jc.load_sae(f"{folder}/sae")
    >>> str(loaded.site), loaded.d_sae, loaded.activation.k
    ('blocks.0.hook_mlp_out', 8, 2)
    """
    wanted = None if site is None else Site.parse(site)
    if wanted is not None and wanted.part != Part.VALUE:
        raise ValueError(
            f"load_sae(site=…): a dictionary belongs to an activation, `{wanted.value}`, not to `{wanted}`."
        )
    check_format(format)
    path, repository = find(path_or_id, revision)
    source = Source(dictionary_file(path, READERS), repository, wanted, dtype)
    return read_source(source, format, processing, options)


def check_format(format: str) -> None:
    """ValueError unless it is the name of a format."""
    if format != "auto" and format not in READERS:
        raise ValueError(
            f"No format is called {format!r}. {did_you_mean(format, READERS)} There are auto, {', '.join(READERS)}."
        )


def read_source(
    source: Source, format: str, processing: Iterable[str] | None, options: Mapping[str, object]
) -> AbstractDictionary:
    """Reads the dictionary that a file holds."""
    name = detect(source) if format == "auto" else format
    _check_options(name, options)
    dictionary = READERS[name](source, **options)
    return dictionary if processing is None else dataclasses.replace(dictionary, processing=check_steps(processing))


def _check_options(name: str, options: Mapping[str, object]) -> None:
    known = list(inspect.signature(READERS[name]).parameters)[1:]
    for option in options:
        if option not in known:
            has = f"It has {', '.join(known)}." if known else "It has none."
            raise TypeError(f"load_sae: the format {name} has no option `{option}`. {has}")


def detect(source: Source) -> str:
    """Tells the format of a file, by what lies beside it and the names of its tensors.

    **Raises:** `ValueError` if it is none, or could be more than one.
    """
    if source.path.name in _NAMED:
        return _NAMED[source.path.name]
    names = set(source.state)
    fitting = [name for name, fits in _signs(source, names).items() if fits]
    if len(fitting) == 1:
        return fitting[0]
    what = (
        f"fit the formats {' and '.join(fitting)}"
        if fitting
        else f"are of no known format; those are {', '.join(READERS)}"
    )
    raise ValueError(
        f"{source.name} holds {listed(sorted(map(str, names))[:12])}{' …' if len(names) > 12 else ''}, which {what}. Say which it is: "
        "format=…."
    )


def _signs(source: Source, names: set[str]) -> dict[str, bool]:
    with_cfg = {"cfg", "state_dict"} <= names
    inner = source.state["state_dict"] if with_cfg else {}
    inner = inner if isinstance(inner, Mapping) else {}
    kk = source.json(f"{source.path.stem}_cfg.json") is not None
    learning = (
        source.path.name.startswith("ae.") or source.path.stem.startswith("ae_") or _dictionary_learning.is_here(source)
    )
    linear = names == set(_plain.SPARSE_MLP)  # AutoEncoderNew has tensors of the same names
    tinymodel = linear and not learning and _plain.tinymodel_sites(source.path.as_posix())[1] is not None
    return {
        "dictionary_learning": learning or (bool(_dictionary_learning.classes_of(names)) and not tinymodel),
        "saelens": with_cfg and "b_dec_out" not in inner,
        "sparsify": {"encoder.weight", "W_dec"} <= names and "b_enc" not in names,
        "openai": {"pre_bias", "latent_bias", "encoder.weight"} <= names,
        "hook_z_kk": kk and names == set(_plain.HOOK_Z_KK),
        "e2e": bool(_plain.e2e_prefixes(source.state)),
        "sparse_mlp": linear and not learning,
        "topk_pt": names == set(_plain.TOPK_PT),
        "transcoder_pt": (with_cfg and "b_dec_out" in inner) or {"W_enc", "b_dec_out"} <= names,
    }
