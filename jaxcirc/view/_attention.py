"""Attention of chosen heads over one prompt, as a page to point at."""

import dataclasses
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._run import check_model
from .._shown import Shown
from .._tokens import token_texts
from .._typing import Prompt
from ..data._encode import as_prompt
from ..models import Transformer
from ..patching import head_patterns
from ._html import framed, page, token_span, write_page


_STYLE = """
.controls { display: flex; gap: 6px 28px; flex-wrap: wrap; margin: 12px 0 4px; font-size: 13px; color: #444; }
.controls label { margin-right: 10px; }
.head { display: grid; grid-template-columns: 110px 1fr; gap: 0 14px; padding: 7px 0; border-top: 1px solid #eee; }
.head .name { line-height: 1.75; }
.head .most { color: #999; font-size: 12px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.head .token { cursor: default; } .head .token.here { outline: 1.5px solid #222; } .head .token:focus { outline: 1.5px solid #222; }
"""
_SCRIPT = """
const heads = [...document.querySelectorAll(".head")].map(head => ({ head, tokens: [...head.querySelectorAll(".token")] }));
const titles = heads[0].tokens.map(token => token.title);
const chosen = name => document.querySelector(`input[name=${name}]:checked`).value;
let pinned = titles.length - 1, at = pinned;
function draw() {
  const weighed = chosen("weigh"), from = chosen("side") === "from";
  heads.forEach(({ head, tokens }, h) => {
    const rows = PATTERNS[weighed][h], most = weighed === "none" ? 1 : MOST[h];
    tokens.forEach((token, i) => {
      const value = from ? rows[at][i] : rows[i][at], share = most > 0 ? Math.min(1, value / most) : 0;
      token.style.background = share < .005 ? "" : `rgb(203 24 29 / ${share.toFixed(3)})`;
      token.style.color = share > .6 ? "#fff" : "";
      token.classList.toggle("here", i === at);
      token.dataset.value = value;
      token.title = `${titles[i]}: ${from ? "read with" : "reads with"} ${value}`;
    });
    const row = tokens.map(token => Number(token.dataset.value)), top = row.indexOf(Math.max(...row));
    head.querySelector(".most").textContent = `${row[top]} ${tokens[top].textContent.trim()}`;
  });
}
heads.forEach(({ tokens }) => tokens.forEach((token, i) => {
  token.addEventListener("mouseenter", () => { at = i; draw(); });
  token.addEventListener("focus", () => { at = i; draw(); });
  token.addEventListener("mouseleave", () => { at = pinned; draw(); });
  token.addEventListener("click", () => { pinned = at = i; draw(); });
}));
document.querySelectorAll("input").forEach(input => input.addEventListener("change", draw));
draw();
"""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionPage(Shown):
    """Attention of some heads over one prompt, as arrays and as a page. Made by `jc.view.attention`.

    **Attributes:**

    - `heads`: as `(layer, head)`. `tokens` `[seq]`: the prompt. `names`: how each token reads.
    - `patterns` `[head q_seq k_seq]`: how much each query attends to each key.
    - `value_weighted` `[head q_seq k_seq]`: the same times the norm of the value at the key.
    - `model`: its name.
    """

    heads: tuple[tuple[int, int], ...]
    tokens: Int[np.ndarray, " seq"]
    names: tuple[str, ...]
    patterns: Float[np.ndarray, "head q_seq k_seq"]
    value_weighted: Float[np.ndarray, "head q_seq k_seq"]
    model: str

    def to_html(self, path: str | Path) -> None:
        """Writes a page that needs no network. **Raises:** `ValueError` unless it is named `.html`."""
        write_page(path, _html(self))

    def _repr_html_(self) -> str:
        return framed(_html(self), 220 + 60 * len(self.heads))


def attention(model: Transformer, tokenizer: Any, prompt: Prompt, heads: Sequence[tuple[int, int]]) -> AttentionPage:
    r"""Shows where each token of a prompt attends, and by which it is attended to, in some heads: point at a token, or click to keep it.

    Patterns are shown as they are, $A_{qk}$, or weighted by the size of what is read, $A_{qk} \lVert v_k \rVert$, as
    `jc.patching.head_patterns` has them: many heads attend to the first token because there is nothing to read.

    **Arguments:**

    - `tokenizer`: of the model, or `None` for a prompt of token ids, which are then shown.
    - `prompt`: a text, which begins as the model's family is used to, or token ids `[seq]`, taken as they stand.
    - `heads`: as `(layer, head)`.

    **Returns:** an `AttentionPage`: `.to_html(path)`, or shown in a notebook; and its arrays.

    **Raises:** `ValueError` for an empty prompt and a head that is not there, `TypeError` for a text without a tokenizer.

    >>> page = jc.view.attention(model, tokenizer, "The teachers that the doctor likes", [(0, 1), (2, 3)])
    >>> page.to_html("attention.html")
    >>> page.patterns.shape
    (2, 7, 7)
    """
    verb = "attention"
    check_model(model)
    ids = as_prompt(verb, tokenizer, prompt)
    plain, weighted = (
        np.asarray(head_patterns(model, jnp.asarray(ids), heads, weigh=weigh)) for weigh in ("none", "value")
    )
    names = tuple(token_texts(tokenizer, ids))
    pairs = tuple((int(layer), int(head)) for layer, head in heads)
    return AttentionPage(pairs, ids, names, plain, weighted, model.name)


def _html(found: AttentionPage) -> str:
    rounded = lambda patterns: [[[float(f"{x:.3g}") for x in row] for row in each] for each in patterns.tolist()]
    data = {"none": rounded(found.patterns), "value": rounded(found.value_weighted)}
    most = [float(f"{each.max():.4g}") for each in found.value_weighted]
    # Numbers alone: nothing of a token is in a script.
    script = f"const PATTERNS = {json.dumps(data)};\nconst MOST = {json.dumps(most)};\n{_SCRIPT}"
    radio = lambda name, value, text, on: (
        f'<label><input type="radio" name="{name}" value="{value}"{" checked" if on else ""}> {text}</label>'
    )
    weighed = radio("weigh", "none", "pattern as it is", True) + radio(
        "weigh", "value", "weighted by the size of the value", False
    )
    sides = radio("side", "from", "what the token reads", True) + radio("side", "to", "what reads the token", False)
    lines = "".join(
        f'<div class="head"><div class="name">head {layer}.{head}<div class="most"></div></div>'
        f'<div class="text">{_tokens(found)}</div></div>'
        for layer, head in found.heads
    )
    note = "Point at a token, or click it to keep it. Red: as much as it is attended to; weighted, by the largest of each head."
    controls = f'<div class="controls"><div>{weighed}</div><div>{sides}</div></div>'
    body = f"<h1>Attention</h1>\n<p>{escape(found.model)}. {note}</p>\n{controls}\n{lines}"
    return page("Attention", body, style=_STYLE, script=script)


def _tokens(found: AttentionPage) -> str:
    return "".join(
        token_span(name, title=f"position {i}", attributes=' tabindex="0"') for i, name in enumerate(found.names)
    )
