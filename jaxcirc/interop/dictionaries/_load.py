"""One dictionary from a file, in whatever format it is."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from ..._checks import check_chosen
from ..._sites import Part, Site
from ...saes import AbstractDictionary, SAE, Transcoder
from ...saes._processing import check_steps
from .._tensors import checked_dtype
from ._find import dictionary_file, find
from ._readers import check_format, detect, READERS
from ._source import Source


def load_sae(
    path_or_id: str | Path,
    *,
    format: str = "auto",
    site: Site | str | None = None,
    processing: Iterable[str] | None = None,
    dtype: DTypeLike | None = None,
    revision: str | None = None,
    latents: Sequence[int] | Sequence[bool] | Shaped[Array | np.ndarray, " n"] | None = None,
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
      - `"gemma_scope"`: `params.npz` of Gemma Scope (Gemma 2). Site, layer and width are in its path,
        `gemma-scope-2b-pt-res/layer_5/width_16k/average_l0_71/params.npz`; give `site` (and `reads`) where it is not. `"gemma_scope_2"`:
        params.safetensors and config.json of Gemma Scope 2 (Gemma 3).
      - `"circuit_tracer"`: `layer_5.safetensors` of a set of transcoders, with its config.yaml. `jc.load_saes` reads the whole set, and
        `jc.load_cross_layer_transcoder` one whose latents write to several layers.
      - `"llama_scope"`: final.safetensors with hyperparams.json, and the R1 release; `"llamascopium"`: config.json and
        sae_weights.safetensors of the library that Llama Scope came to be.
      - `"goodfire"`, `"qresearch"`, `"qwen_scope"`: one file a layer, which its name says; Qwen Scope's k is in the name of its repository.
      - `"dictionary_learning"`: ae.pt. `"openai"`: OpenAI's GPT-2 autoencoders. `"hook_z_kk"`: Kissane et al.'s SAEs of attention
        outputs. `"e2e"`: Apollo's. `"sparse_mlp"`: noanabeshima's tinymodel. `"topk_pt"`: prestoj's. `"transcoder_pt"`: Dunefsky et
        al.'s. Files of tensors may be safetensors too, where PyTorch's own format takes the `torch` extra.

      Attributes of a configuration that are of the training are passed over; one that would change what the dictionary computes and is
      not supported is refused by name.
    - `site`: where it belongs, if the files do not say it, or say it wrongly.
    - `processing`: the `process_weights` steps of the model that it was trained on, in place of what the format says.
    - `dtype`: of the arrays; by default as stored, half precision as float32.
    - `latents`: read only these, by their numbers, in this order, or by a mask of all, as a dictionary of their directions, biases and
      thresholds: of a safetensors file or an uncompressed `.npz` nothing else is read, so that a dictionary larger than memory can be gone
      through piece by piece. Where latents compete (TopK, GroupMax), `encode` is then an error, and the directions are still there.
    - `options`: of the format: `reads`, `norm_scaling_factor`, `normalize_decoder`, `ignore_config` (saelens); `reads`,
      `ignore_config` (sparsify); `dict_class`,
      `normalize_decoder`, `scaled_features`, `apply_b_dec_to_input`, `use_threshold` (dictionary_learning); `omit_dead`,
      `activation`, `k` (openai); `reads`, `activation`, `k` (circuit_tracer); `reads` (gemma_scope, gemma_scope_2, sparse_mlp,
      transcoder_pt); `k` (topk_pt, qwen_scope).

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
    dtype = None if dtype is None else checked_dtype(dtype)
    wanted = None if site is None else Site.parse(site)
    if wanted is not None and wanted.part != Part.VALUE:
        raise ValueError(
            f"load_sae(site=…): a dictionary belongs to an activation, `{wanted.value}`, not to `{wanted}`."
        )
    check_format(format)
    chosen = None if latents is None else check_chosen("load_sae: latents", "latents", latents)
    path, repository = find(path_or_id, revision)
    source = Source(dictionary_file(path, READERS), repository, wanted, dtype)
    if chosen is not None:
        source = dataclasses.replace(source, latents=tuple(map(int, chosen.indices)), among=chosen.among)
    return read_source(source, format, processing, options)


def read_source(
    source: Source, format: str, processing: Iterable[str] | None, options: Mapping[str, object]
) -> AbstractDictionary:
    """Reads the dictionary that a file holds."""
    name = detect(source) if format == "auto" else format
    _check_options(name, options)
    dictionary = READERS[name].read(source, **options)
    if source.latents is not None:
        dictionary = _of_some(dictionary, source)
    return dictionary if processing is None else dataclasses.replace(dictionary, processing=check_steps(processing))


def _of_some(dictionary: AbstractDictionary, source: Source) -> AbstractDictionary:
    """Checks that the reader read some latents alone. One that compares them is an error, as it would compare those alone that were read:
    readers of one's own need not say so themselves.
    """
    if dictionary.d_sae != len(source.latents or ()):
        raise ValueError(f"{source.name}: its reader does not read some latents alone. Leave latents=… out.")
    if not isinstance(dictionary, SAE | Transcoder):
        return dictionary
    return dataclasses.replace(dictionary, activation=source.activation(dictionary.activation))


def _check_options(name: str, options: Mapping[str, object]) -> None:
    known = list(inspect.signature(READERS[name].read).parameters)[1:]
    for option in options:
        if option not in known:
            has = f"It has {', '.join(known)}." if known else "It has none."
            raise TypeError(f"load_sae: the format {name} has no option `{option}`. {has}")
