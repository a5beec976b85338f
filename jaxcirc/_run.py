"""One pure run of a model: the only way in.

`run(model, tokens, saes=…, edits=…, record=…)` is a pure function of pytrees. Sites are static keys, values are arrays, so whatever an
experiment changes is an ordinary argument, and `jax.jvp`, `vjp`, `vmap` and `jit` keep their ordinary meaning.
"""

import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from ._checks import check_kind, check_list
from ._edits import AbstractEdit
from ._metrics import AbstractMetric, AbstractPositionMetric, LogitDiff, Metric, position_read
from ._sites import by_site, BySite, Kind, Site
from ._tap import Everything, site_read, Tap
from ._typing import Keys, Logits, Resid, Tokens
from .models import Transformer
from .saes import AbstractDictionary, mismatch, Transcoder


NOTHING: Mapping = types.MappingProxyType({})


def run(
    model: Transformer,
    tokens: Tokens,
    *,
    saes: Mapping[Site, AbstractDictionary] | Mapping[str, AbstractDictionary] = NOTHING,
    edits: Mapping[Site, AbstractEdit] | Mapping[str, AbstractEdit] = NOTHING,
    record: Iterable[Site | str] = (),
    mask: Keys | None = None,
) -> tuple[Logits, BySite[Float[Array, "..."]]]:
    """Runs one sequence and returns its logits and the activations asked for.

    **Arguments:**

    - `tokens` `[seq]`: one sequence of token ids; `jax.vmap` for a batch.
    - `saes`: dictionaries to splice in, keyed by site. Splicing alone changes nothing: the reconstruction error is added back. The
      latents and the error become sites, `site.acts` `[seq d_sae]` and `site.error` (shape of the site); and where the decoder reads its
      input (normalised dictionaries, skip transcoders) so does that, `site.input` (shape of the site that the dictionary reads).
    - `edits`: what happens at which site, for example `{"blocks.0.hook_mlp_out": jc.Add(direction)}`.
    - `record`: the sites to return, or `"all"` for every site that there is, the large `attn.hook_result` too.
    - `mask` `[seq]`: False for padding.

    **Returns:** logits `[seq d_vocab]` and `{site: value that downstream sees}`, in execution order; its keys are sites, and their names
    are taken as well. What each site holds is listed at `jc.Kind`.

    **Raises:** `ValueError` for a site that the model does not have, token ids outside the vocabulary, a sequence longer than the
    context, a dictionary of another width or for another site; `TypeError` for what is not an array of integers, an edit, or a
    dictionary. A dictionary trained on weights processed otherwise than the model's warns. Under `jit` and `vmap`, where token ids are not
    known yet, one outside the vocabulary makes the run NaN.

    Called by itself it runs a compiled program a block, which blocks of which the same is asked share; a block with a function as an edit
    (`jc.Apply`, a class of your own) runs operation by operation, so that the function is called each time. Under `jax.jit` it is part of
    your program, which for a small model is faster by another factor of two or three; of blocks that are alike one is traced.

    >>> logits, cache = jc.run(model, tokens, record=["blocks.1.hook_resid_post"])
    >>> cache["blocks.1.hook_resid_post"].shape
    (6, 128)
    """
    check_tokens(model, tokens)
    check_mask(tokens, mask)
    everything = isinstance(record, str) and record == "all"
    if isinstance(record, str | Site) and not everything:
        raise TypeError(
            f"run(record=…): expected a list of sites, or 'all', got one site. Write record=[{str(record)!r}]."
        )
    saes, edits = by_site(saes), by_site(edits)
    _check_values("edits", edits, AbstractEdit, "an edit such as jc.Replace(value)")
    _check_values("saes", saes, AbstractDictionary, "a dictionary such as jc.load_sae(…) gives")
    check_dictionaries(model, saes)
    named = () if everything else check_list("run: record", "sites", record)
    wanted = Everything() if everything else frozenset(map(Site.parse, named))
    tap = Tap(saes, edits, wanted)
    logits = model(jnp.asarray(tokens), tap, mask)
    tap.check_all_used(model.name, model.n_layers, wanted)
    return logits, BySite((site, tap.cache[site]) for site in sorted(tap.cache))


def run_metric(
    model: Transformer,
    metric: Metric,
    tokens: Tokens,
    *,
    saes: Mapping[Site, AbstractDictionary] = NOTHING,
    edits: Mapping[Site, AbstractEdit] = NOTHING,
    record: Iterable[Site] = (),
    mask: Keys | None = None,
) -> tuple[Any, dict[Site, Float[Array, "..."]]]:
    """The metric of a run, and what `record` asks for: as by `run`, but compiled it unembeds only what the metric reads."""
    last, wanted = Site(model.n_layers - 1, Kind.RESID_POST), frozenset(record)
    logits, cache = run(model, tokens, saes=saes, edits=edits, record={*wanted, last}, mask=mask)
    behind = any(site.layer is None and site.kind not in (Kind.EMBED, Kind.POS_EMBED) for site in {*saes, *edits})
    value = metric(logits) if behind else metric_of_last(model, metric, cache[last])
    return value, {site: x for site, x in cache.items() if site in wanted}


def metric_of_last(
    model: Transformer, metric: Metric, resid: Resid, edits: Mapping[Site, AbstractEdit] = NOTHING
) -> Any:
    """The metric of the last residual stream, of which only what is read is unembedded, with edits to the final norm."""
    position, metric = only_position(metric)
    tokens, metric = _only_tokens(metric)
    read = resid if position is None else resid[position][None]
    return metric(model.unembed(read, Tap(NOTHING, edits, frozenset()), tokens))


def only_position(metric: Metric) -> tuple[Int[Array, "..."] | None, Metric]:
    """The one position that the metric reads, and the same metric of logits that are of that position alone; `None`, and the metric,
    where it may read several.
    """
    position = position_read(metric)
    if position is None or not isinstance(metric, AbstractPositionMetric):
        return None, metric
    return position, _OfPosition(metric)


def _only_tokens(metric: Metric) -> tuple[Int[Array, " token"] | None, Metric]:
    """The few tokens whose logits the metric of a position reads, and the same metric of logits that are of these alone; `None`, and the
    metric, where it may read any.
    """
    if not isinstance(metric, _OfPosition) or type(metric.metric) is not LogitDiff:
        return None, metric
    tokens = metric.token_ids()
    return jnp.stack(tokens), _OfPosition(LogitDiff(*range(len(tokens))))


class _OfPosition(AbstractMetric):
    """A metric that reads one position, of logits `[1 d_vocab]` that are of that position alone."""

    metric: AbstractPositionMetric

    def __call__(self, logits: Float[Array, "1 d_vocab"]) -> Float[Array, ""]:
        return self.metric.at(logits[0])

    def token_ids(self) -> tuple[Int[Array, "..."], ...]:
        return self.metric.token_ids()


def sites(model: Transformer) -> tuple[Site, ...]:
    """Every site of `model`, in execution order: derived from its forward pass, not declared.

    >>> [str(site) for site in jc.sites(model)][:3]
    ['hook_embed', 'hook_pos_embed', 'blocks.0.hook_resid_pre']
    """
    return tuple(site_shapes(model, 1))


def check_model(model: object) -> None:
    """TypeError unless it is a model."""
    if not isinstance(model, Transformer):
        instead = f" Load it: jc.from_pretrained({model!r})." if isinstance(model, str) else ""
        raise TypeError(f"Expected a model, as jc.from_pretrained gives one, got a {type(model).__name__}.{instead}")


def site_shapes(model: Transformer, seq: int) -> dict[Site, jax.ShapeDtypeStruct]:
    """The shape and dtype of every site's value for a sequence of length `seq`."""
    check_model(model)
    shapes = _record_all.eval_shape(model, jax.ShapeDtypeStruct((seq,), jnp.int32))
    return {site: shapes[site] for site in sorted(shapes)}


@jax.jit  # never run: so that a model's structure is traced once, however often its sites are asked for
def _record_all(model: Transformer, tokens: Tokens) -> dict[Site, Float[Array, "..."]]:
    tap = Tap(NOTHING, NOTHING, Everything())
    model(tokens, tap)
    return tap.cache


def check_tokens(model: Transformer, tokens: Int[Array | np.ndarray, "..."], *, batched: bool = False) -> None:
    """ValueError unless `tokens` can be run: indexing would clamp an id outside the vocabulary and say nothing."""
    check_model(model)
    if isinstance(tokens, str):
        text = repr(tokens) if len(tokens) < 50 else "text"
        raise TypeError(
            f"Expected an array of token ids, got text. Use jnp.array(tokenizer.encode({text})), with the tokenizer of jc.load_tokenizer."
        )
    if not isinstance(tokens, jax.Array | np.ndarray):
        raise TypeError(f"Expected an array of token ids, got a {type(tokens).__name__}. Use jnp.asarray(tokens).")
    shape, dtype = tokens.shape, tokens.dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"Token ids are integers; got dtype {dtype}.")
    if len(shape) != 1 + batched:
        one = "tokens[0]" if len(shape) == 2 and len(tokens) == 1 else "jax.vmap over the batch"
        want, instead = ("[batch seq]", "tokens[None]") if batched else ("[seq]", one)
        raise ValueError(f"Expected token ids of shape {want}, got {shape}. Use {instead}.")
    if 0 in shape:
        raise ValueError(f"Expected at least one token, got token ids of shape {shape}.")
    if shape[-1] > model.most_positions:
        raise ValueError(
            f"The prompt has {shape[-1]} tokens, and {model.name} has a context of {model.n_ctx}. Shorten the prompt."
        )
    if shape[-1] > model.n_ctx:
        warnings.warn(
            f"The prompt has {shape[-1]} tokens, and {model.name} was trained on {model.n_ctx} at most. Its rotary positions go on from "
            "there, but what it makes of them is not what it was trained for.",
            stacklevel=3,
        )
    check_token_ids(model, tokens)


def check_mask(tokens: Int[Array | np.ndarray, "..."], mask: Bool[Array | np.ndarray, "..."] | None) -> None:
    """ValueError unless the padding mask has one boolean for each token, and a real one for each prompt; TypeError if it is no array."""
    if mask is None:
        return
    check_kind("mask", mask, (jax.Array, np.ndarray), "an array of booleans, such as jnp.asarray(mask)")
    shape, dtype = mask.shape, mask.dtype
    if shape != tokens.shape or dtype != jnp.bool_:
        raise ValueError(
            f"mask: expected one boolean a token, True where it is real, so bool{list(tokens.shape)}; got {dtype}{list(shape)}."
        )
    if not isinstance(mask, Tracer) and not (real := np.asarray(mask).any(-1)).all():
        which = f"prompt {int(np.flatnonzero(~real)[0])}" if real.ndim else "the prompt"
        raise ValueError(f"mask: {which} has no real token. Leave it out.")


def check_token_ids(
    model: Transformer, ids: Int[Array | np.ndarray, "..."], vocabulary: int | None = None, *, name: str = ""
) -> None:
    """ValueError if an id, of what `name` says, is outside the vocabulary; silent on traced values, which were checked before tracing."""
    if isinstance(ids, Tracer):
        return
    size = model.d_vocab if vocabulary is None else vocabulary
    values = np.asarray(ids)
    bad = np.argwhere((values < 0) | (values >= size))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        said = f"{name and f'{name}: '}Token id {int(values[at])}{f' at {list(at)}' if at else ''}"
        raise ValueError(
            f"{said} is outside the vocabulary of {model.name}, 0 to {size - 1}. "
            "Was the text encoded with another model's tokenizer?"
        )


def check_metric(model: Transformer, metric: object) -> None:
    """ValueError if the metric reads a token that the model does not have; TypeError if it is none, or what makes one."""
    if getattr(metric, "__name__", None) == "metric" and hasattr(metric, "__self__"):
        raise TypeError("metric: expected a metric, got the method that makes it. Call it: prompts.metric().")
    if not callable(metric) or isinstance(metric, type):
        raise TypeError(
            f"metric: expected a metric such as jc.LogitDiff(answer, foil), or a function of one prompt's logits, got {metric!r}."
        )
    if isinstance(metric, AbstractMetric):
        for ids in metric.token_ids():
            check_token_ids(model, ids, len(model.b_U))


def check_scalar(metric: Metric, logits: jax.ShapeDtypeStruct) -> None:
    """ValueError unless the metric of one prompt makes one floating-point number of its `logits` `[seq d_vocab]`; nothing is computed."""
    wanted = (
        f"A metric gets the logits of one prompt, {logits.dtype}{list(logits.shape)} [seq d_vocab] with no batch axis, and returns one "
        "floating-point number"
    )
    try:
        value = jax.eval_shape(lambda metric, logits: metric(logits), metric, logits)
    except jax.errors.TracerArrayConversionError:
        raise ValueError(f"metric: it leaves JAX, as NumPy's functions do. {wanted}, by jax.numpy.") from None
    except Exception as error:  # whatever a function of the caller's can raise
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"metric: on one prompt's logits it raised {type(error).__name__}: {said}. {wanted}."
        ) from error
    leaves = jax.tree.leaves(value)
    if len(leaves) != 1 or value is not leaves[0]:
        raise ValueError(f"metric: it returned a {type(value).__name__} of {len(leaves)} values. {wanted}.")
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"metric: it returned {value.dtype}{list(value.shape)}. {wanted}.")


def check_dictionaries(model: Transformer, saes: Mapping[Site, AbstractDictionary]) -> None:
    """ValueError for a dictionary at a site it was not trained for; a warning if the model's weights were processed otherwise."""
    for site, sae in saes.items():
        check_kind(f"saes: at `{site}`", sae, AbstractDictionary, "a dictionary, as jc.load_sae gives one")
        if sae.site is not None and sae.site != site:
            raise ValueError(
                f"The dictionary given for `{site}` was trained for `{sae.site}`. Key it by its own site, `sae.site`."
            )
        if isinstance(sae, Transcoder) and sae.reads is None:
            raise ValueError(
                f"The transcoder given for `{site}` does not say which site it reads. Make it with reads=…."
            )
        steps = {
            *mismatch(site, sae.processing, model.processing),
            *mismatch(site_read(site, sae), sae.processing, model.processing),
        }
        if steps:
            warnings.warn(
                f"The dictionary at `{site}` was trained on weights processed by {_steps(sae.processing or ())}, and {model.name} is "
                f"processed by {_steps(model.processing)}. The activations there differ by {_steps(steps)}, so its reconstructions "
                "will be poor. See jc.process_weights.",
                stacklevel=3,
            )


def _check_values(argument: str, mapping: Mapping[Site, object], expected: type, example: str) -> None:
    for site, value in mapping.items():
        if not isinstance(value, expected):
            raise TypeError(f"run({argument}=…): at `{site}` expected {example}, got a {type(value).__name__}.")


def _steps(processing: Iterable[str]) -> str:
    return ", ".join(sorted(processing)) or "nothing"
