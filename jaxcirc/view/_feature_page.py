"""The page of one latent, as HTML."""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from .._words import counted
from ..features._examples import Example
from ._html import page, shown, table, token_span


RED, BLUE = (203, 24, 29), (33, 102, 172)  # of activations above 0, and below it
BESIDE = 28  # tokens of an example on either side of where it is strongest
_STYLE = """
.example { display: grid; grid-template-columns: 64px 1fr; gap: 0 14px; padding: 5px 0; border-top: 1px solid #eee; }
.example .strength { text-align: right; font-variant-numeric: tabular-nums; color: #777; line-height: 1.75; }
.peak { outline: 1.5px solid rgb(103 0 13 / .75); } svg { max-width: 100%; height: auto; }
"""


def feature_html(found: Any) -> str:
    """Makes the whole page of a `FeaturePage`."""
    about = ", ".join(f"{name} {escape(_place(text))}" for name, text in found.about.items() if text)
    on = f"On at {found.share_active:.3%} of {counted(found.n_tokens, 'token')} in {counted(found.n_prompts, 'text')}"
    strongest = f", at most {np.abs(found.active).max():.4g}" if len(found.active) else ""
    parts = [
        f"<h1>latent {found.unit} at <code>{found.site}</code></h1>",
        f"<p>{about}. {on}{strongest}.</p>",
        "<h2>Where it is strongest</h2>",
        _examples(found),
        "<h2>How strong it is</h2>",
        _histogram(found.active, found.n_tokens),
        "<h2>What it does to the logits by itself</h2>",
        _logits(found),
        "<h2>Which latents write alike</h2>",
        _neighbours(found),
        *([] if found.edges.empty else ["<h2>Which latents it is joined to</h2>", _edges(found)]),
    ]
    return page(f"latent {found.unit} at {found.site}", "\n".join(parts), style=_STYLE)


def _place(text: str) -> str:
    """The end of a path: where a file lies in a reader's own folders says nothing to others."""
    return "/".join(text.split("/")[-2:])


def _examples(found: Any) -> str:
    if not found.examples:
        return "<p>Nowhere: it is off at every token of these texts.</p>"
    most = max(float(np.abs(example.acts).max()) for example in found.examples)
    note = "<p>Red as strong as the latent is at the token; point at a token for the number. Framed: the strongest.</p>"
    return note + "".join(
        _example(example, pieces, most) for example, pieces in zip(found.examples, found.pieces, strict=True)
    )


def _example(example: Example, pieces: Sequence[tuple[int, str]], most: float) -> str:
    peak = example.position
    first, last = max(0, peak - BESIDE), min(len(example.tokens), peak + BESIDE + 1)
    spans, end = [], 0
    for count, text in pieces:
        begin, end = end, end + count
        if end <= first or begin >= last:
            continue
        acts = example.acts[begin:end].tolist()
        act, framed = max(acts, key=abs), begin <= peak < end
        said = [f"{each:.4g} at position {at}" for at, each in enumerate(acts, begin)]
        span = token_span(
            text,
            title=", ".join(said),
            style=_heat(act, most),
            attributes=f' data-act="{act:.6g}"' + ' data-peak="1"' * framed,
        )
        spans.append(span.replace('class="token"', 'class="token peak"', 1) if framed else span)
    more = [
        '<span class="more">… </span>' if first else "",
        '<span class="more"> …</span>' if last < len(example.tokens) else "",
    ]
    strength = f'<div class="strength">{example.acts[peak]:.3g}</div>'
    return f'<div class="example">{strength}<div class="text">{more[0]}{"".join(spans)}{more[1]}</div></div>'


def _heat(act: float, most: float) -> str:
    share = abs(act) / most
    if share < 0.005:
        return ""
    colour = "{} {} {}".format(*(RED if act > 0 else BLUE))
    return f"background: rgb({colour} / {share:.3f}){'; color: #fff' if share > 0.6 else ''}"


def _histogram(active: Float[np.ndarray, " n"], n_tokens: int) -> str:
    """How many tokens it is how strong at, on a logarithmic axis, as SVG in the page."""
    if not len(active):
        return "<p>No activation other than 0.</p>"
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "jaxcirc", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(6.4, 2.2), layout="constrained")
        axes = figure.subplots()
        low, high = min(0.0, float(active.min())), max(0.0, float(active.max()))
        axes.hist(active, bins=40, range=(low, high), color="#cb181d", alpha=0.85, log=True)
        axes.set(xlabel="activation, where it is on", ylabel="tokens")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.tick_params(which="minor", labelleft=False)
        axes.spines[["top", "right"]].set_visible(False)
        held = io.StringIO()
        figure.savefig(held, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    drawing = re.sub(r"^.*?(?=<svg)", "", held.getvalue(), flags=re.S)
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    note = f"<p>{len(active):,} of {counted(n_tokens, 'token')}: {len(active) / n_tokens:.3%}.</p>"
    return note + drawing


def _logits(found: Any) -> str:
    effects = found.logits
    if effects.empty:
        return "<p>This site reaches the residual stream by more than a matrix, so no logits follow from the direction alone.</p>"
    half = len(effects) // 2
    note = (
        "<p>Its decoder’s direction through the final norm, with the norm’s scale 1, and the unembedding; less the mean of all "
        "logits. By itself: not by way of later layers.</p>"
    )
    rows = [(_word(*each), f"{effect:+z.4f}") for *each, effect in effects.itertuples(index=False)]
    return note + _beside(table(["raises most", "#"], rows[:half]), table(["lowers most", "#"], rows[half:]))


def _word(token: str, number: int) -> str:
    return f'<span class="text">{token_span(token, title=f"token {number}")}</span>'


def _neighbours(found: Any) -> str:
    alike = found.neighbours
    if alike.empty:
        return "<p>There is no other latent to compare it with.</p>"
    half = len(alike) // 2
    rows = [(f"{unit}", f"{cosine:+z.4f}") for unit, cosine in alike.itertuples(index=False)]
    note = "<p>By the cosine of the decoder’s rows.</p>"
    return note + _beside(table(["#alike", "#cosine"], rows[:half]), table(["#opposed", "#cosine"], rows[half:]))


def _edges(found: Any) -> str:
    what = {"from": "out of", "to": "into"}
    tables = []
    rows = list(found.edges.itertuples(index=False))
    for side, site in dict.fromkeys((side, site) for side, site, *_ in rows):
        lines = [(f"{unit}", f"{value:+z.4g}") for *of, unit, value in rows if of == [side, site]]
        tables.append(
            f"<div><h3>{what[side]} <code>{shown(site)}</code></h3>{table(['#latent', '#mean edge'], lines)}</div>"
        )
    return "<p>By mean Jacobians over a corpus, the largest first.</p>" + _beside(*tables)


def _beside(*tables: str) -> str:
    return f'<div class="tables">{"".join(tables)}</div>'
