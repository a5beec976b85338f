"""What PyTorch computes with the shipped models: `python -m weights.train.golden` writes `golden.safetensors` beside each.

Logits and a few hidden states of transformers' models for a fixed batch of tokens, so that the tests compare with PyTorch where
there is none.
"""

import numpy as np
from safetensors.numpy import save_file
from weights.train.paths import WEIGHTS
from weights.train.text import MIXTURES, sequences

import jaxcirc as jc
from jaxcirc._files import writing_file


def golden(name: str) -> dict[str, np.ndarray]:
    """`tokens [batch seq]`, `logits [batch seq d_vocab]`, and the site names of the residual stream with `[batch seq d_model]`."""
    import torch
    from transformers import AutoModelForCausalLM

    # Rows as long as the context, so that a local window is exceeded; few positions are kept of what is large.
    tokens = sequences(jc.load_tokenizer(name), MIXTURES[name], 2, seed=99, split="held_out")[:, :-1]
    model = AutoModelForCausalLM.from_pretrained(
        WEIGHTS / name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    last = []  # what enters the final norm: the last of the hidden states is what comes of it
    model.get_submodule("transformer.ln_f").register_forward_pre_hook(lambda norm, inputs: last.append(inputs[0]))
    with torch.no_grad():
        out = model(torch.from_numpy(tokens).long(), output_hidden_states=True)
    found = {"tokens": tokens, "logits": out.logits[:, ::8].numpy()}
    residual = [hidden[:, ::8].numpy() for hidden in (*out.hidden_states[:-1], *last)]
    found |= {f"blocks.{layer}.hook_resid_pre": hidden for layer, hidden in enumerate(residual[:-1])}
    found[f"blocks.{len(residual) - 2}.hook_resid_post"] = residual[-1]
    return {key: np.ascontiguousarray(array) for key, array in found.items()}


if __name__ == "__main__":
    for name in MIXTURES:
        with writing_file(WEIGHTS / name / "golden.safetensors") as aside:
            save_file(golden(name), aside)
