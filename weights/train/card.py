"""Writes `weights/README.md` from what was measured: `python -m weights.train.card`."""

import hashlib
import json

from weights.train.dictionaries import BATCH, LEARNING_RATE, RECIPES as DICTIONARIES, Size
from weights.train.language_model import AGAIN, Recipe, RECIPES as MODELS
from weights.train.models import SHAPES
from weights.train.paths import WEIGHTS
from weights.train.text import FIRST_MIXTURES, LAST_MIXTURES, MIXTURES, SEQ

import jaxcirc as jc


HEAD = """# The shipped models

Written by `python -m weights.train.card`; every number is read from `measured.json`, which `python -m weights.train.evaluate` writes.
Models, tokenizers and dictionaries were trained from nothing, on text made by `weights/train/text.py`, with fixed seeds. Licence: MIT.

They are for learning, tests and demonstrations of circuits: they know about three hundred words and a few kinds of sentence.

"""
TEXT = """## The text

- **ioi**: indirect-object sentences. Then, Mary and John went to the store. John gave a drink to Mary.
- **simple**, **nounpp**, **relative**: subject-verb agreement, next to each other, across a prepositional phrase, and across and within
  a relative clause. The teacher that the doctors like is happy.
- **repeated**: random words, or random tokens of the whole vocabulary, said again and again.
- **story**: five sentences about two animals.

Held out of training are one in ten of the pairs of names (in indirect-object sentences and stories) and one in ten of the combinations of
sentence kind, subject, verb and distractor, in either number: `jaxcirc.data.held_out`. Everything below is measured on text and prompts
of held-out combinations only, which is `split="held_out"` in `jc.data.ioi` and `jc.data.subject_verb`. Documents begin with
`<|endoftext|>`, and are packed into sequences of {seq} tokens; a fifth of the sequences lack the first one, so that prompts work with and
without it. In training, random tokens that are not yet a repetition weigh 0.1, the name that ends an indirect-object sentence 4.
"""


ACCURACY = """Accuracy: how often the answer's logit is above the foil's, with `<|endoftext|>` in front and without, and how often the
answer is the most probable token of all. (Any verb may follow a subject, so for agreement there is no one right token.) Induction is
the second copy of random tokens, after its first two.

"""


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines) + "\n"


def percent(x: float) -> str:
    return f"{100 * x:.1f} %"


def behaviour(measured: dict) -> str:
    losses = [["all", f"{measured['held_out_loss']:.3f}"], *([k, f"{v:.3f}"] for k, v in measured["by_kind"].items())]
    out = "Held-out loss, nats a token:\n\n" + table(["text", "loss"], losses)
    if "induction" not in measured:
        return out
    rows = []
    for kind, found in measured["with_bos"].items():
        top = percent(found["top_1"]) if kind == "ioi" else ""
        without = percent(measured["without_bos"][kind]["answer_over_foil"])
        rows.append([kind, percent(found["answer_over_foil"]), without, top])
    rows.append(["induction", "", "", percent(measured["induction"]["top_1"])])
    return out + ACCURACY + table(["behaviour", "answer over foil", "without <\\|endoftext\\|>", "top 1"], rows)


def dictionaries(measured: dict) -> str:
    rows = [
        [f"`{site}`", str(d["d_sae"]), f"{d['l0']:.1f}", percent(d["variance_explained"]), str(d["never_on"])]
        for site, d in measured["dictionaries"].items()
    ]
    spliced = [
        [f"`{kind}`", f"{d['loss']:.3f}", percent(d["loss_increase"])] for kind, d in measured["spliced"].items()
    ]
    return (
        "Dictionaries, read by `jc.load_saes`; L0 is the mean number of latents that are on:\n\n"
        + table(["site", "latents", "L0", "variance explained", "never on"], rows)
        + "Loss with all dictionaries of one kind in place of their sites, the error term left out:\n\n"
        + table(["kind", "loss", "increase"], spliced)
    )


ERRORS = """Errors: what a dictionary does not reconstruct is a node too. Its share of the sizes of all node effects at its site
(`jc.node_effects` with its defaults), summed over positions and prompts, by kind of agreement. Training of the dictionaries pushed this
share down, on prompts that are not held out (`weights/train/effects.py`); here are held-out ones:

"""
HEADS = """Heads by training step: the largest mean attention of a head of each layer, on random tokens said twice; to the token before,
and in the second copy to the token that came after the present one in the first. Before training no head does either. All heads are
in `training.json`.

"""
EVERY = 500  # steps, of what is shown of the heads


def errors(measured: dict) -> str:
    if "error_shares" not in measured:
        return ""
    kinds = list(next(iter(measured["error_shares"].values())))
    rows = [
        [f"`{site}`", *(percent(found[kind]) for kind in kinds)] for site, found in measured["error_shares"].items()
    ]
    return ERRORS + table(["site", *kinds], rows)


def heads(name: str) -> str:
    path = WEIGHTS / name / "training.json"
    if not path.exists():
        return ""
    history = json.loads(path.read_text(encoding="utf-8"))
    shown = [row for row in history if row["step"] <= 1500 or row["step"] % EVERY == 0 or row is history[-1]]
    best = lambda layers: [f"{max(found):.2f}" for found in layers]
    rows = [[str(row["step"]), *best(row["previous"]), *best(row["induction"]), percent(row["top_1"])] for row in shown]
    layers = range(len(history[0]["previous"]))
    header = ["step", *(f"one back, layer {i}" for i in layers), *(f"induction, layer {i}" for i in layers), "top 1"]
    return HEADS + table(header, rows)


def described(size: Size) -> str:
    how = lambda part: ", gradients integrated" if part.path else ""
    weighed = lambda part: f" (errors' effects weigh {part.effects:g}{how(part)})" if part.effects else ""
    after = "".join(f", then {part.steps} on what comes of it{weighed(part)}" for part in size.downstream)
    return f"{size.k} of {size.d_sae} latents on, {size.steps} steps{after}"


STARTS = {
    "tiny-gpt2": "random (`random_model` in `weights/train/models.py`): every array normal, maps out of sublayers smaller by depth "
    "as in GPT-2; positions are sinusoids in the first 32 dimensions, beside the tokens in all. No head was put in: those that attend "
    "one back and those of induction were formed by training alone.",
    "tiny-gpt-neo": "weights that lean to copying, with a previous-token head in the first block and, reading it, a weak induction head in "
    "the second (`leaning_model` in `weights/train/models.py`): these were put there, and training shaped them further.",
}


def before(model: Recipe) -> str:
    """The stages before the text."""
    lines = [
        f"{stage.steps} steps of {stage.batch} rows of {stage.seq} tokens, {share(stage.kinds)}, over {stage.vocabulary} tokens"
        for stage in model.before
    ]
    if not lines:
        return ""
    kinds = (
        "turns, pairs and lists of random tokens, from which order and copying are learned (`weights/train/copying.py`)"
    )
    return f"- Before the text, {kinds}: {'; '.join(lines)}; warm-up to the learning rate below.\n"


def afterwards(name: str, model: Recipe) -> str:
    """The last part on text."""
    if not model.again:
        return ""
    return (
        f"- And again: {model.again} steps of {model.batch} sequences, by kind {share(LAST_MIXTURES[name])}; a new optimiser, "
        f"learning rate {AGAIN * model.learning_rate:g}, warm-up, cosine to zero. Agreement with a main verb was learned here.\n"
    )


def share(mixture: dict[str, float]) -> str:
    return ", ".join(f"{kind} {weight:g}" for kind, weight in mixture.items())


def recipe(name: str) -> str:
    model, saes, shape = MODELS[name], DICTIONARIES[name], SHAPES[name]
    first = f" (the first quarter: {share(FIRST_MIXTURES[name])})" if FIRST_MIXTURES[name] != MIXTURES[name] else ""
    windows = ", ".join("global" if window is None else f"local {window}" for window in shape["windows"])
    return (
        f"- Architecture: {shape['architecture']}, {len(shape['windows'])} layers (attention {windows}), d_model {shape['d_model']}, "
        f"{shape['n_heads']} heads, d_mlp {4 * shape['d_model']}, context {SEQ}, float32.\n"
        f"- Documents by kind: {share(MIXTURES[name])}{first}.\n"
        f"- Start: {STARTS[name]}\n"
        f"{before(model)}"
        f"- Training{' on text' if model.before else ''}: {model.steps} steps of {model.batch} sequences, "
        f"{model.steps * model.batch * SEQ:,} tokens; AdamW, learning rate {model.learning_rate}, "
        f"{'' if model.before else 'warm-up, '}cosine to zero; seed {model.seed}.\n"
        f"{afterwards(name, model)}"
        "- Dictionaries: BatchTopK, saved as JumpReLU in SAELens' layout; "
        + "; ".join(f"`{kind}` {described(size)}" for kind, size in saes.items())
        + f"; {BATCH} sequences a step, Adam, learning rate {LEARNING_RATE}.\n"
        f"- Made by `python -m weights.train.language_model {name}`, `python -m weights.train.dictionaries {name}`, "
        f"`python -m weights.train.golden`, `python -m weights.train.evaluate {name}`, from the repository's root, with the `dev` and "
        "`torch` extras.\n\n"
    )


def files(name: str) -> str:
    paths = sorted(path for path in (WEIGHTS / name).rglob("*") if path.is_file())
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    return table(["file", "sha256"], [[f"`{path.relative_to(WEIGHTS)}`", digest(path)] for path in paths])


def card(name: str) -> str:
    measured = json.loads((WEIGHTS / name / "measured.json").read_text(encoding="utf-8"))
    size = jc.from_pretrained(name).d_vocab
    head = f"## {name}\n\nVocabulary: {size} entries, byte-level BPE.\n\n"
    return (
        head
        + recipe(name)
        + behaviour(measured)
        + heads(name)
        + dictionaries(measured)
        + errors(measured)
        + files(name)
    )


if __name__ == "__main__":
    parts = [HEAD, TEXT.format(seq=SEQ), "\n" + "\n".join(card(name).rstrip() + "\n" for name in SHAPES)]
    (WEIGHTS / "README.md").write_text("".join(parts).rstrip() + "\n", encoding="utf-8")
