"""Writes `feature_circuits.npz`: node effects and edges as feature-circuits (Marks et al. 2024, arXiv 2403.19647) computes them.

    python -m tests.comparison.feature_circuits FOLDER

`FOLDER` is a checkout of github.com/saprmarks/feature-circuits, at the commit named by `COMMIT`; it needs an environment with torch,
`nnsight==0.3.7`, `dictionary_learning==0.1.0` and `transformers<4.50`. Its functions are called as they are, but for two things: the metric
reads the unembedding's output, because there nnsight tells the steps of integrated gradients apart, and no model is downloaded.
"""

import json
import sys
from pathlib import Path

import numpy as np


COMMIT = "1d87366c758c484bd5c419af1b92f6ec0678046e"
FILE = Path(__file__).with_name("feature_circuits.npz")
CONFIG = {
    **{"model_type": "gpt2", "n_embd": 6, "n_head": 2, "n_layer": 2, "n_positions": 3, "vocab_size": 11, "n_inner": 10},
    **{"bos_token_id": None, "eos_token_id": None, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
}
LATENTS = 9
STEPS = 10


def main(folder: str) -> None:
    import torch

    sys.path.insert(0, folder)
    from loading_utils import Submodule

    import attribution

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    network = make_model()
    weights = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    envoys, model = wrapped(network)
    submodules = {name: Submodule(name, envoy, is_tuple=is_tuple) for name, (envoy, is_tuple) in envoys.items()}
    coders = {name: make_dictionary(CONFIG["n_embd"], LATENTS) for name in submodules}
    clean, corrupt = torch.randint(CONFIG["vocab_size"], (2, 2, CONFIG["n_positions"]))
    answer, foil = torch.tensor([1, 4]), torch.tensor([2, 8])

    def metric(model):
        last = model.lm_head.output[:, -1, :]
        return (last.gather(-1, foil[:, None]) - last.gather(-1, answer[:, None])).squeeze(-1)

    dictionaries = {submodules[name]: coder for name, coder in coders.items()}
    effects, deltas, grads, total = attribution.patching_effect(
        *(clean.tolist(), corrupt.tolist(), model, list(submodules.values()), dictionaries, metric),
        method="ig",
        steps=STEPS,
    )
    numbers = {"total": total}
    for name, submodule in submodules.items():
        numbers[f"nodes/{name}"] = effects[submodule].to_tensor()
    for (source, target), between in wires(CONFIG["n_layer"]).items():
        up, down = submodules[source], submodules[target]
        edges = attribution.jvp(
            *(clean.tolist(), model, dictionaries, down, effects[down].abs() > 0, up, grads[down], deltas[up]),
            intermediate_stopgrads=[submodules[name] for name in between],
        )
        numbers[f"edges/{source}/{target}"] = edges.to_dense()
    arrays = {name: value.detach().numpy() for name, value in numbers.items()}
    arrays |= {f"weights/{name}": value for name, value in weights.items() if not name.endswith(".attn.bias")}
    for name, coder in coders.items():
        arrays |= {f"dictionaries/{name}/{key}": value.numpy() for key, value in coder.state_dict().items()}
    arrays |= {"clean": clean.numpy(), "corrupt": corrupt.numpy(), "answer": answer.numpy(), "foil": foil.numpy()}
    np.savez_compressed(FILE, config=json.dumps(CONFIG), **arrays)


def make_model():
    """A random GPT-2 with every parameter away from its default."""
    import torch
    import transformers

    network = transformers.GPT2LMHeadModel._from_config(transformers.GPT2Config(**CONFIG), attn_implementation="eager")
    for value in network.parameters():
        value.data += 0.4 * torch.randn(value.shape)
    return network.eval()


def wrapped(network):
    """The model as nnsight has it, and what it calls the sites, each with whether the module returns a tuple."""
    import nnsight
    import tokenizers
    import transformers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"pad": 0}, unk_token="pad"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad")
    model = nnsight.LanguageModel(network, tokenizer=tokenizer)
    envoys = {"embed": (model.transformer.drop, False)}
    for i, layer in enumerate(model.transformer.h):
        envoys |= {f"attn_{i}": (layer.attn, True), f"mlp_{i}": (layer.mlp, False), f"resid_{i}": (layer, True)}
    return envoys, model


def make_dictionary(width: int, latents: int):
    """A random ReLU autoencoder."""
    import torch
    from dictionary_learning import AutoEncoder

    coder = AutoEncoder(width, latents)
    for value in coder.parameters():
        value.data = torch.randn(value.shape) / 2
    return coder


def wires(n_layers: int) -> dict[tuple[str, str], list[str]]:
    """All edges of sequential blocks, and the sites through which they do not go."""
    found = {}
    for i in range(n_layers):
        before, attn, mlp, resid = f"resid_{i - 1}" if i else "embed", f"attn_{i}", f"mlp_{i}", f"resid_{i}"
        found |= {(mlp, resid): [], (attn, resid): [mlp], (attn, mlp): []}
        found |= {(before, mlp): [attn], (before, attn): [], (before, resid): [mlp, attn]}
    return found


if __name__ == "__main__":
    main(sys.argv[1])
