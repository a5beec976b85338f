"""Who makes the indirect object, and how: path patching, attention and scrubbing on one model, written as a section of
`.github/docs/indirect-objects.md` with its pictures, every number computed on the way.

    python examples/indirect_objects.py [MODEL]

`MODEL` is a shipped model (`tiny-gpt2` without it), a GGUF file such as the one that `.ci/smollm2` fetches, a Hugging Face folder or a
Hub id.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxcirc as jc


REPOSITORY = Path(__file__).parents[1]
PROMPTS, SAMPLES, SHOWN = 40, 8, 16  # prompts; draws for each in scrubbing; prompts whose attention is read
MOST = 4  # heads of a kind that are followed
FLIPS = {
    "IO": ("IO",),
    "S": ("S",),
    "names": ("IO", "S"),
    "order": ("order",),
    "names and order": ("IO", "S", "order"),
    "three names": ("IO", "S1", "S2"),
    "S1": ("S1",),
}
HEAD = """# Indirect objects: who makes the name, and by what

"Then, Mary and John went to the store. John gave a drink to" goes on with "Mary": the name said once (IO), and not the one said twice
(S, at S1 and S2). Wang et al. 2022 (arXiv 2211.00593) found a circuit for this in GPT-2 small, of name movers, S-inhibition heads and
detectors of duplicates. Four claims about such a circuit are tested here on other models, and each may fail. Changes are of the
logit of IO less that of S at the last token (end), in logits, with one standard error over prompts; negative is worse. What is sent is
named by its corruption: other names (IO, S, or both), the same names in the other order, or three different names, so that none is
said twice. `python examples/indirect_objects.py MODEL` writes a model's section, and computed every number in it.
"""


class Case(NamedTuple):
    """One model with its prompts, in both orders of names: the clean ones are the same for each corruption."""

    model: jc.Transformer
    tokenizer: Any
    graph: jc.ComponentGraph
    prompts: dict[str, jc.data.Prompts]
    clean: np.ndarray

    @property
    def level(self) -> float:
        return float(self.clean.mean())

    def at(self, *names: str) -> np.ndarray:
        """Where each prompt has these positions, `[batch k]`."""
        return np.stack([self.prompts["IO"].positions[name] for name in names], axis=1)

    def sent(self, flip: str, receivers, senders=None, *, at: Sequence[str], read: Sequence[str]) -> np.ndarray:
        """By how much the metric changes, `[sender batch]`, along a path on which all else is held at the clean run."""
        prompts = self.prompts[flip]
        chain = receivers if receivers == ["logits"] else [*receivers, ["logits"]]
        found = jc.path_patch(
            *(self.model, prompts.clean, prompts.corrupt, prompts.metric()),
            receivers=chain,
            senders=senders,
            positions=self.at(*at),
            receiver_positions=self.at(*read),
            graph=self.graph,
        )
        return np.asarray(found) - self.clean

    def together(self, flip: str, stages, senders: Iterable[str], **where) -> np.ndarray:
        """The same of senders together, `[batch]`; nothing changes where there are none before the receivers."""
        first = [self.graph.receiver(name) for name in stages[0]]
        reaching = tuple(name for name in senders if self.graph.edges[self.graph.sender(name), first].any())
        return self.sent(flip, stages, [reaching], **where)[0] if reaching else np.zeros(len(self.clean))

    def heads(self, changes: np.ndarray, sign: int) -> list[str]:
        """The heads with the largest changes of a sign: 4 standard errors from none, and 1 % of the metric."""
        mean = sign * changes.mean(1)
        enough = (mean > 4 * error(changes)) & (mean > 0.01 * self.level)
        order = [i for i in np.argsort(-mean) if enough[i] and self.graph.sender_slots[i].part == "head"]
        return [self.graph.senders[i] for i in order[:MOST]]


def main(name: str | Path = "tiny-gpt2", folder: Path = REPOSITORY / ".github" / "docs", count: int = PROMPTS) -> str:
    model, tokenizer = jc.from_pretrained(name), jc.load_tokenizer(name)
    folder.mkdir(exist_ok=True)
    label = model.name.removesuffix(".gguf")
    stem = "indirect-objects-" + label.split("-Instruct")[0].lower()
    text = f"## {label}\n\n" + "\n\n".join(study(case_of(model, tokenizer, count), folder, stem))
    page = folder / "indirect-objects.md"
    whole = page.read_text("utf-8") if page.exists() else HEAD
    sections = {part.split("\n")[0][3:]: part for part in re.split(r"^(?=## )", whole, flags=re.M)[1:]}
    sections[label] = wrapped(text) + "\n"
    page.write_text(HEAD + "\n" + "\n".join(part.rstrip() + "\n" for part in sections.values()), encoding="utf-8")
    return text


def wrapped(text: str) -> str:
    """Breaks long lines of paragraphs; tables, headings and pictures are a line each."""
    return "\n\n".join(
        block if block[0] in "#|!" else textwrap.fill(block, 140, break_long_words=False, break_on_hyphens=False)
        for block in text.split("\n\n")
    )


def case_of(model: jc.Transformer, tokenizer, count: int) -> Case:
    made = {name: jc.data.ioi(tokenizer, count, template="mixed", flip=flip, seed=0) for name, flip in FLIPS.items()}
    return Case(model, tokenizer, jc.component_graph(model, shared="each"), made, metrics(model, made["IO"]))


def metrics(model: jc.Transformer, prompts: jc.data.Prompts, corrupt: bool = False) -> np.ndarray:
    """The metric of each prompt."""
    run = jax.jit(jax.vmap(lambda model, tokens, metric: metric(jc.run(model, tokens)[0]), in_axes=(None, 0, 0)))
    return np.asarray(run(model, prompts.corrupt if corrupt else prompts.clean, prompts.metric()))


def study(case: Case, folder: Path, stem: str) -> list[str]:
    to_logits = {flip: case.sent(flip, ["logits"], at=["end"], read=["end"]) for flip in ("IO", "S", "names")}
    movers, against = case.heads(to_logits["IO"], -1), case.heads(to_logits["IO"], 1)
    of_s = [name for name in case.heads(to_logits["S"], -1) if name not in [*movers, *against]]
    pictures = {"IO is another": to_logits["IO"], "S is another": to_logits["S"]}
    jc.draw_path_patching(pictures, case.graph, folder / f"{stem}-logits.svg")
    page = [the_task(case), direct(case, to_logits, movers, against, of_s, stem)]
    if not movers:
        return [*page, "No head moves the name by itself here, so there is nothing that the other claims are about."]
    queries = case.sent("three names", [inputs(movers, "q")], at=["end"], read=["end"])
    keys = case.sent("IO", [inputs(movers, "k")], at=["IO"], read=["IO", "end"])
    jc.draw_path_patching(
        {"to their queries at end; three names": queries, "to their keys at IO; IO is another": keys},
        case.graph,
        folder / f"{stem}-inputs.svg",
    )
    steering = case.heads(queries, -1)
    values = None
    if steering:
        stages = [inputs(steering, "v"), inputs(movers, "q")]
        values = case.sent("S1", stages, at=["S2"], read=["S2", "end"])
    detectors = case.heads(values, -1) if values is not None else []
    roles = {"name mover": movers, "acts against IO": against, "acts against S": of_s}
    roles |= {"moves the query": steering, "read at S2": detectors}
    results = [
        claim_1(case, to_logits, movers, against, of_s),
        claim_2(case, movers, keys),
        claim_3(case, movers, steering),
        claim_4(case, movers, steering, detectors),
    ]
    verdicts = "\n".join(f"| {number} | {words} | **{verdict}** |" for number, words, verdict, _ in results)
    return [
        *page,
        what_they_read(case, movers, queries, keys, stem),
        attention(case, roles, folder, stem),
        *(body for *_, body in results),
        f"### What holds\n\n| | claim | here |\n|---|---|---|\n{verdicts}",
    ]


def the_task(case: Case) -> str:
    prompts, corrupt = case.prompts["IO"], {}
    for flip in ("IO", "S", "names", "order"):
        corrupt[flip] = metrics(case.model, case.prompts[flip], corrupt=True).mean()
    rest = ", ".join(f"{value:+.2f} ({flip})" for flip, value in corrupt.items())
    example = case.tokenizer.decode(prompts.clean[0])
    right = int((case.clean > 0).sum())
    return f"""{case.model.n_layers} layers of {case.model.n_heads} heads. `{example}` … On {len(case.clean)} such
prompts, in both orders, the metric is {plus_minus(case.clean)}, and IO has the larger logit of the two in {right}. On the corrupt prompts,
by the clean ones' answers: {rest}."""


def direct(case: Case, to_logits: dict[str, np.ndarray], movers, against, of_s, stem: str) -> str:
    rows = [
        f"| {name} | {' | '.join(plus_minus(changes[case.graph.sender(name)]) for changes in to_logits.values())} |"
        for name in [*movers, *against, *of_s]
    ]
    mlps = sum_of(case, to_logits["IO"], "mlp")
    rest = f"All MLPs together make {plus_minus(mlps)} of IO's change."
    if not rows:
        return f"### Who writes the name?\n\nNo head changes the metric directly. {rest}"
    return f"""### Who writes the name?

What each head writes at the last token on the corrupt prompt, sent to the logits and nowhere else. Name movers are the heads without
which the metric falls most when IO is another.

| head | IO is another | S is another | both |
|---|---|---|---|
{chr(10).join(rows)}

{rest}

![Direct effects]({stem}-logits.svg)"""


def what_they_read(case: Case, movers, queries: np.ndarray, keys: np.ndarray, stem: str) -> str:
    rows = [f"| {name} | {plus_minus(queries[i])} |" for i, name in largest(case, queries)]
    of_keys = [f"| {name} | {plus_minus(keys[i])} |" for i, name in largest(case, keys)]
    return f"""### What do the name movers read?

From every sender to the queries of {listed(movers)} at end, with three different names; and to their keys at IO, with another IO. On from
there they reach the logits directly, and all else is held.

| sender | to the queries |
|---|---|
{chr(10).join(rows)}

| sender | to the keys |
|---|---|
{chr(10).join(of_keys)}

![Effects by queries and keys]({stem}-inputs.svg)"""


def attention(case: Case, roles: dict[str, list[str]], folder: Path, stem: str) -> str:
    names = list(dict.fromkeys(name for heads in roles.values() for name in heads))
    places = [place_of(case, name) for name in names]
    some = case.prompts["IO"][:SHOWN]
    shares = {}
    for weigh in ("none", "value"):
        every = np.stack(
            [np.asarray(jc.patching.head_patterns(case.model, t, places, weigh=weigh)) for t in some.clean]
        )
        shares[weigh] = every / every.sum(-1, keepdims=True)
    texts = [case.tokenizer.decode([int(token)]) for token in some.clean[0]]
    chosen = [*roles["name mover"][:2], *(heads[0] for heads in roles.values() if heads)]
    drawn = [place_of(case, name) for name in dict.fromkeys(chosen)]
    jc.draw_patterns(case.model, some.clean[0], drawn, folder / f"{stem}-patterns.svg", names=texts)
    weighted = folder / f"{stem}-weighted.svg"
    jc.draw_patterns(case.model, some.clean[0], drawn, weighted, value_weighted=True, names=texts)

    def read(name: str, query: str, key: str) -> str:
        rows, head = np.arange(len(some)), names.index(name)
        q, k = (np.asarray(some.positions[each]) for each in (query, key))
        return " / ".join(f"{shares[weigh][rows, head, q, k].mean():.2f}" for weigh in ("none", "value"))

    lines = []
    for role, heads in roles.items():
        query, keys = ("S2", ("S1", "S1+1", "IO")) if role == "read at S2" else ("end", ("IO", "S1", "S2", "end"))
        lines += [
            f"| {name} | {role} | {query} | " + ", ".join(f"{key} {read(name, query, key)}" for key in keys) + " |"
            for name in heads
        ]
    return f"""### Where do they look?

Mean attention over {len(some)} prompts: as it is, and weighted by the norm of the value at the key, as a share.

| head | what it does | from | to |
|---|---|---|---|
{chr(10).join(lines)}

![Attention]({stem}-patterns.svg)

![Attention, weighted by values]({stem}-weighted.svg)"""


Result = tuple[str, str, str, str]


def claim_1(case: Case, to_logits, movers, against, of_s) -> Result:
    words = "heads that write to the logits directly work for IO, or do nothing"
    by_io, by_s, both = (changes.sum(0) for changes in to_logits.values())
    verdict = "holds" if not against else "does not hold"
    worst = "No head works against IO."
    if against:
        rises = plus_minus(one(case, to_logits["IO"], against[0]))
        worst = f"Without what {against[0]} writes of IO the metric changes by {rises}: it works against the name."
    of_heads = lambda flip: np.abs(to_logits[flip][is_head(case)].mean(1)).sum()
    low = np.abs(to_logits["IO"][first_half(case)].mean(1)).max() / case.level
    scrubbed = ""
    for label, heads in (("all of them", [*movers, *against, *of_s]), ("the name movers alone", movers)):
        tree = jc.Claim("logits", jc.Exact(), children=[jc.Claim(name, jc.Exact(), positions="end") for name in heads])
        scrubbed += f" With {label} kept at end and every other sender to the logits resampled, {recovered(case, tree)} is left."
    return (
        "1",
        words,
        verdict,
        f"""### 1. Do all direct heads work for IO?

{worst} The sizes of all heads' changes sum to {of_heads("IO"):.2f} with another IO and to {of_heads("S"):.2f} with
another S. All senders together change it by {plus_minus(by_io)} with another IO and by {plus_minus(by_s)}
with another S; with both by {plus_minus(both)}, and the sum of the two is off by {plus_minus(by_io + by_s - both)}. In the first half of
the layers the largest head changes it by {low:.1%}.{scrubbed}""",
    )


def claim_2(case: Case, movers, keys: np.ndarray) -> Result:
    words = "name movers' keys do not tell which name IO is"
    by = {
        part: case.together("IO", [inputs(movers, part)], case.graph.senders, at=["IO"], read=["IO", "end"])
        for part in ("k", "v")
    }
    share = abs(by["k"].mean()) / case.level
    chosen = [name for _, name in largest(case, keys, 8)]
    children = [jc.Claim(name, same_place("keys"), through="k", positions="IO") for name in chosen]
    tree = jc.Claim(
        "logits", jc.Exact(), others=jc.Exact(), children=[own(name, reaching(case, name, children)) for name in movers]
    )
    return (
        "2",
        words,
        "holds" if share < 0.05 else "does not hold",
        f"""### 2. Do name movers depend on the name at their keys?

With another IO in all that their keys at IO read the metric changes by {plus_minus(by["k"])}, {share:.1%} of it; in all that their values
read, by {plus_minus(by["v"])}. As a hypothesis: with the edges from {listed(chosen)} into their keys at IO resampled among prompts of the
same order, {recovered(case, tree)} is left.""",
    )


def claim_3(case: Case, movers, steering) -> Result:
    words = "what moves the name movers' queries tells them the name, and not its place"
    path = [inputs(movers, "q")]
    if not steering:
        every = case.together("three names", path, case.graph.senders, at=["end"], read=["end"])
        moved = abs(every.mean()) > max(4 * error(every), 0.01 * case.level)  # as is asked of a single head
        found = (
            "something moves them, but which heads these prompts do not tell"
            if moved
            else "where the movers look does not follow what is said twice"
        )
        told = f"""### 3. Do their queries learn the name, or its place?

No head by itself moves their queries by four standard errors. All senders together, with three different names, change the metric by
{plus_minus(every)} through them: {found}."""
        return "3", words, "nothing to test", told
    by = {
        flip: case.together(flip, path, steering, at=["end"], read=["end"])
        for flip in ("names", "order", "names and order")
    }
    name, place = (abs(by[flip].mean()) for flip in ("names", "order"))
    scrubbed = {}
    for label, sampler in (("same order", same_place("queries")), ("any", drawn_together("queries"))):
        children = [jc.Claim(each, sampler, through="q", positions="end") for each in steering]
        tree = jc.Claim(
            "logits",
            jc.Exact(),
            others=jc.Exact(),
            children=[own(each, reaching(case, each, children)) for each in movers],
        )
        scrubbed[label] = recovered(case, tree)
    return (
        "3",
        words,
        "holds" if name > place else "does not hold",
        f"""### 3. Do their queries learn the name, or its place?

{listed(steering)} write to the queries at end. Sent there from prompts with other names in the same places they change the metric by
{plus_minus(by["names"])}; from prompts with the same names in exchanged places by {plus_minus(by["order"])}; with both by
{plus_minus(by["names and order"])}. As a hypothesis: with these edges resampled among prompts of the same order {scrubbed["same order"]} is
left, and among all prompts {scrubbed["any"]}.""",
    )


def claim_4(case: Case, movers, steering, detectors) -> Result:
    words = "the heads that move the queries read at S2, by their values, that S was there before"
    if not steering:
        return "4", words, "nothing to test", "### 4. What do those heads read at S2?\n\nThere are no such heads."
    by = {}
    for part, place in (("v", "S2"), ("k", "S2"), ("q", "end")):
        stages = [inputs(steering, part), inputs(movers, "q")]
        by[part] = case.together("S1", stages, case.graph.senders, at=[place], read=["S2", "end"])
    whole = case.together("S1", [inputs(movers, "q")], steering, at=["end"], read=["end"])
    share = by["v"].mean() / whole.mean()
    holds = abs(whole.mean()) > 4 * float(error(whole[None])[0]) and share > 0.5 and bool(detectors)
    scrubbed = ""
    if detectors:
        left = []
        for sampler in (jc.scrubbing.Shared(jc.Conditional("S1.position"), "values"), drawn_together("values")):
            children = [jc.Claim(each, sampler, through="v", positions="S2") for each in detectors]
            heads = [
                jc.Claim(
                    each,
                    jc.Exact(),
                    others=jc.Exact(),
                    through="q",
                    positions="end",
                    children=reaching(case, each, children),
                )
                for each in steering
            ]
            tree = jc.Claim(
                "logits",
                jc.Exact(),
                others=jc.Exact(),
                children=[own(each, reaching(case, each, heads)) for each in movers],
            )
            left.append(recovered(case, tree))
        scrubbed = f""" As a hypothesis: with the edges from {listed(detectors)} into their values at S2 resampled among prompts of
the same order {left[0]} is left, and among all prompts {left[1]}."""
    found = f"The heads that they read there are {listed(detectors)}." if detectors else "No single head is read there."
    return (
        "4",
        words,
        "holds" if holds else "does not hold",
        f"""### 4. What do those heads read at S2?

With another S1, so that S2 repeats nothing, what {listed(steering)} send to the queries changes the metric by {plus_minus(whole)}. Of that,
what all senders make at S2 and their values read is {plus_minus(by["v"])} ({share:.0%}), their keys there {plus_minus(by["k"])}, and their
queries at end {plus_minus(by["q"])}. {found}{scrubbed}""",
    )


def recovered(case: Case, tree: jc.Claim) -> str:
    """How much of the metric is left under a hypothesis, with its standard error over draws."""
    prompts = case.prompts["IO"]
    found = jc.scrub(case.model, tree, prompts, prompts.metric(), jax.random.key(0), samples=SAMPLES)
    return f"{found.recovered:.1%} ± {found.recovered_standard_error:.1%}"


def same_place(name: str):
    """Any prompt with the names in the same places, one for all edges."""
    return jc.scrubbing.Shared(jc.Conditional("IO.position"), name)


def drawn_together(name: str):
    """Any prompt, one for all edges."""
    return jc.scrubbing.Shared(jc.Unconditional(), name)


def own(name: str, children: Sequence[jc.Claim]) -> jc.Claim:
    """A head that writes to the logits at end, and reads its own prompt but for some edges."""
    return jc.Claim(name, jc.Exact(), others=jc.Exact(), positions="end", children=children)


def reaching(case: Case, name: str, children: Sequence[jc.Claim]) -> list[jc.Claim]:
    """Those of the claims that the head reads."""
    read = case.graph.receiver(f"{name}.q")
    return [child for child in children if case.graph.edges[case.graph.sender(child.name), read]]


def largest(case: Case, changes: np.ndarray, count: int = 6) -> list[tuple[int, str]]:
    """The senders with the largest changes, heads or not, beside rounding."""
    size = np.abs(changes.mean(1))
    return [(int(i), case.graph.senders[i]) for i in np.argsort(-size)[:count] if size[i] > 1e-4]


def inputs(heads: Sequence[str], part: str) -> list[str]:
    return [f"{name}.{part}" for name in heads]


def place_of(case: Case, name: str) -> tuple[int, int]:
    slot = case.graph.sender_slots[case.graph.sender(name)]
    return slot.layer, slot.head


def one(case: Case, changes: np.ndarray, name: str) -> np.ndarray:
    return changes[case.graph.sender(name)]


def is_head(case: Case) -> np.ndarray:
    return np.array([slot.part == "head" for slot in case.graph.sender_slots])


def first_half(case: Case) -> np.ndarray:
    return is_head(case) & np.array([slot.layer < case.model.n_layers // 2 for slot in case.graph.sender_slots])


def sum_of(case: Case, changes: np.ndarray, part: str) -> np.ndarray:
    return changes[[slot.part == part for slot in case.graph.sender_slots]].sum(0)


def error(changes: np.ndarray) -> np.ndarray:
    """Standard errors over prompts."""
    return changes.std(-1, ddof=1) / changes.shape[-1] ** 0.5


def plus_minus(changes: np.ndarray) -> str:
    return f"{changes.mean():+z.2f} ± {error(changes):.2f}"


def listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "tiny-gpt2")
