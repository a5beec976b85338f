"""Autoencoders of the residual stream that come as one PyTorch file a layer, whose name says the layer: Goodfire's, qresearch's, Qwen's.

`acts = activation(x W_enc + b_enc)`, `x ≈ acts W_dec + b_dec`: none subtracts `b_dec` first.
"""

import re

from ...saes import ReLU, SAE, TopK
from ._reader import Reader
from ._sites import agreed, of_named_file
from ._source import Source
from ._tensors import checked, Table


_GOODFIRE: Table = {
    "encoder_linear.weight": "d_sae d_in",
    "encoder_linear.bias": "d_sae",
    "decoder_linear.weight": "d_in d_sae",
    "decoder_linear.bias": "d_in",
}
_QRESEARCH: Table = {name.replace("_linear", ""): axes for name, axes in _GOODFIRE.items()}
_QWEN: Table = {"W_enc": "d_sae d_in", "b_enc": "d_sae", "W_dec": "d_in d_sae", "b_dec": "d_in"}
_QWEN_RELEASE = re.compile(r"SAE-Res-[^/]+-W(\d+)K-L0_(\d+)(?=/|$)")


def read_goodfire(source: Source) -> SAE:
    """Reads Goodfire's SAEs of Llama 3, `Llama-3.1-8B-Instruct-SAE-l19.pth`."""
    return _relu(source, _GOODFIRE, "encoder_linear", "decoder_linear", "goodfire")


def read_qresearch(source: Source) -> SAE:
    """Reads qresearch's SAE of DeepSeek's R1 distilled into Llama 8B, `DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt`."""
    return _relu(source, _QRESEARCH, "encoder", "decoder", "qresearch")


def _relu(source: Source, table: Table, encoder: str, decoder: str, what: str) -> SAE:
    tensors, _ = checked(source.state, table, source)
    return SAE(
        **source.leaves(
            tensors[f"{encoder}.weight"].T,
            tensors[f"{encoder}.bias"],
            tensors[f"{decoder}.weight"].T,
            tensors[f"{decoder}.bias"],
        ),
        activation=ReLU(),
        site=agreed([("its name", of_named_file(source.path.name))], source.site, source.name),
        processing=(),  # trained on the hidden states of the Hugging Face model as it is
        centred=False,
        origin=f"{source.name} ({what})",
    )


def read_qwen_scope(source: Source, *, k: int | None = None) -> SAE:
    """Reads Qwen Scope's SAEs, `layer5.sae.pt`: exactly `k` latents are on, negative ones too. `k` and the number of latents are in the
    repository's name alone, `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`; `k` is for files that lie elsewhere.
    """
    release = _QWEN_RELEASE.search(source.place)
    named = None if release is None else int(release[2])
    if named is None and k is None:
        raise ValueError(
            f"{source.name}: how many latents are on stands in the name of its repository alone, SAE-Res-…-W32K-L0_50, and it does not lie "
            "in a folder of such a name. Pass k=…."
        )
    if named is not None and k is not None and named != k:
        raise ValueError(f"{source.name}: k={k} was asked for, and the repository's name says {named}.")
    sizes = {} if release is None else {"d_sae": int(release[1]) * 1024}
    tensors, _ = checked(source.state, _QWEN, source, sizes=sizes)
    return SAE(
        **source.leaves(tensors["W_enc"].T, tensors["b_enc"], tensors["W_dec"].T, tensors["b_dec"]),
        activation=source.activation(TopK(int(named or k or 0), rectified=False)),
        site=agreed([("its name", of_named_file(source.path.name))], source.site, source.name),
        processing=(),
        centred=False,
        origin=f"{source.name} (qwen_scope)",
    )


def _fits_qresearch(source: Source) -> bool:
    return set(source.state) == set(_QRESEARCH) and of_named_file(source.path.name) is not None


def _fits_qwen(source: Source) -> bool:
    """Tells by which axes are those of the latents; the files of circuit-tracer have tensors of the same names, the other way round."""
    if set(source.state) != set(_QWEN):
        return False
    d_sae, d_in = (tuple(getattr(source.state[name], "shape", ())) for name in ("b_enc", "b_dec"))
    shapes = [tuple(getattr(source.state[name], "shape", ())) for name in ("W_enc", "W_dec")]
    return d_sae != d_in and shapes == [d_sae + d_in, d_in + d_sae]


READERS = (
    Reader("goodfire", read_goodfire, lambda source: set(source.state) == set(_GOODFIRE)),
    Reader("qresearch", read_qresearch, _fits_qresearch),
    Reader("qwen_scope", read_qwen_scope, _fits_qwen),
)
