"""Causal scrubbing: a run in which everything is resampled that a hypothesis says does not matter."""

import numpy as np
from jaxtyping import Array, Bool, Int, Key, UInt32

from .._checks import check_count, check_key
from .._metrics import Metric
from .._traced import check_untraced
from .._typing import Progress
from ..data import Prompts
from ..graph import component_graph
from ..models import Transformer
from ..patching._common import given_budget, graph_for
from ..runs import in_groups, lengthened, prepare_prompts
from ._claim import check_hypothesis, Claim, ROOT
from ._data import Data
from ._drawn import draw, Drawn
from ._plain import plain_runs
from ._result import ClaimRow, Scrub
from ._samplers import Rows, Unconditional, Words
from ._values import evaluate, Evaluated, Scene


def scrub(
    model: Transformer,
    hypothesis: Claim,
    dataset: Prompts | Int[Array, "batch seq"],
    metric: Metric,
    key: Key[Array, ""] | UInt32[Array, "2"],
    *,
    samples: int = 10,
    mask: Bool[Array, "batch seq"] | None = None,
    budget: int | None = None,
    progress: Progress | None = None,
) -> Scrub:
    r"""The metric of each example with everything resampled that a hypothesis says does not matter.

    For every example and sample the hypothesis' tree is given data, from the logits down: each claim's datum is drawn by its sampler in
    place of its parent's, and what its children are not by `others` in place of its own. Then it is computed from the leaves up,

    $$x_v = r_v(o) + \sum_c (\mathrm{value}_c - u_c(o)),$$

    with $x_v$ what a component $v$ reads, $r_v(o)$ the residual stream there in the plain run of the others' datum $o$, $u_c(o)$ what
    child $c$ writes in that run, and $\mathrm{value}_c$ what $c$ writes in the tree. So one component may occur in several branches, with
    other data in each. A claim with `paths="any"` reads a run of $o$ in which what its children write is replaced, instead.

    The metric, and with it the labels, is that of the example itself: nothing resamples it.

    **Arguments:**

    - `hypothesis`: a claim about `"logits"`, as `jc.Claim` makes one or `jc.scrubbing.load_hypothesis` reads one.
    - `dataset`: `Prompts`, whose corrupt ones are not used, or tokens `[batch seq]`: the examples, and what is drawn in their place. Of
      prompts of several lengths each is resampled by those of its own.
    - `metric`: its arrays carry the axis over the examples, as `prompts.metric()` does.
    - `key`: a random key; the same one gives the same values. A claim's draws follow from it and from where the claim is in the tree, and
      do not change with what else there is.
    - `samples`: how often data are drawn for each example.
    - `mask` `[batch seq]`: False for padding, of tokens; `Prompts` have their own.
    - `budget`: bytes that what is run at once may take, unless given those that suit the device.
    - `progress(done, of, stage)` is called on the way.

    **Returns:** `Scrub`.

    **Raises:** `ValueError` for a claim about what its parent does not read, two claims about one edge, a position that there is not, a
    single example, or a class that holds one alone where that is asked for.

    >>> prompts = jc.data.ioi(tokenizer, 12, template="mixed", seed=0)
    >>> names = jc.Conditional(("IO", "S2"))
    >>> mover = jc.Claim("a3.h1", jc.Exact(), children=[jc.Claim("a2.h0", names, through="q")])
    >>> hypothesis = jc.Claim("logits", jc.Exact(), children=[mover, jc.Claim("m3", names)])
    >>> found = jc.scrub(model, hypothesis, prompts, prompts.metric(), jax.random.key(0), samples=3)
    >>> found.values.shape, list(found.table()["path"])
    ((3, 12), ['logits', 'logits/a3.h1', 'logits/a3.h1/a2.h0.q', 'logits/m3'])

    **Reference:** Chan et al. 2022, "Causal scrubbing: a method for rigorously testing interpretability hypotheses". In their code the
    labels are an input as others are, which a root whose others are resampled scores by another example's; here they are the example's.
    """
    who = "scrub"
    check_untraced(who, model)
    check_count(f"{who}: samples", "times data are drawn for each example", samples)
    budget = given_budget(who, budget)
    check_key(f"{who}: key", key)
    tokens, mask = _given(dataset, mask)
    problem = prepare_prompts(model, tokens, None, metric, mask)
    model, graph = graph_for(who, model, component_graph(model, shared="each"), int(problem.length))
    data = Data(np.asarray(tokens), problem.given_mask(), dataset if isinstance(dataset, Prompts) else None)
    _check_enough(data)
    check_hypothesis(graph, hypothesis, data)

    rows = np.broadcast_to(np.arange(len(data)), (samples, len(data)))
    words = Words(key, "", rows.shape)
    tree = draw(hypothesis, rows, data, words)
    resampled = draw(Claim(ROOT, Unconditional()), rows, data, words, parent="baseline")
    claims = [claim for _, claim in hypothesis.walk()]
    plain = plain_runs(model, graph, problem, [claim.name for claim in claims[1:]], budget)
    named = {claim.where for claim in claims if claim.where is not None}
    columns = {each: lengthened(data.columns(each), problem.clean.shape[1], False) for each in named}
    scene = Scene(model, graph, plain, problem.metric, columns, budget)
    found = _evaluated(scene, tree, rows, progress)
    return Scrub(
        values=found.metric,
        reference=np.asarray(plain.measured(model, problem.metric)),
        baseline=_evaluated(scene, resampled, rows, None).metric,
        equal=found.numbers[tree.path] == rows,
        claims=tuple(_row(node, rows, found.numbers[node.path]) for node in tree.walk()),
        runs=found.runs,
    )


def _evaluated(scene: Scene, tree: Drawn, rows: Rows, progress: Progress | None) -> Evaluated:
    """Evaluates a tree for all samples of all examples, as many at once as fit into the budget."""
    groups, parts = in_groups(rows.size, scene.bytes_of(len(list(tree.walk()))), scene.budget), []
    for i, variants in enumerate(groups):
        parts.append(evaluate(scene, tree.of(variants), rows.reshape(-1)[variants]))
        if progress is not None:
            progress(i + 1, len(groups), "groups")
    joined = lambda each: np.concatenate(each)[: rows.size].reshape(rows.shape)
    numbers = {path: joined([part.numbers[path] for part in parts]) for path in parts[0].numbers}
    return Evaluated(joined([part.metric for part in parts]), numbers, sum(part.runs for part in parts))


def _row(node: Drawn, rows: Rows, numbers: Rows) -> ClaimRow:
    """What was drawn for a claim, of which `numbers` says the values."""
    itself, equal = float((node.own == rows).mean()), float((numbers == rows).mean())
    return ClaimRow(node.path, len(np.unique(node.own)), itself, equal, len(np.unique(numbers)))


def _given(dataset: Prompts | Int[Array, "batch seq"], mask: Bool[Array, "batch seq"] | None):
    """The tokens and the mask. **Raises:** `ValueError` for prompts with two masks."""
    if not isinstance(dataset, Prompts):
        return dataset, mask
    if mask is not None:
        raise ValueError("scrub: prompts have a mask of their own. Leave the argument mask out.")
    return dataset.clean, dataset.mask


def _check_enough(data: Data) -> None:
    """ValueError for an example that nothing can take the place of."""
    alone = np.flatnonzero(np.bincount(data.alike)[data.alike] == 1)
    if len(alone):
        which = "of its length, and others do not take its place" if len(data) > 1 else "there is"
        raise ValueError(
            f"scrub: prompt {alone[0]} is the only one {which}, so there is nothing to resample. Give more prompts."
        )
