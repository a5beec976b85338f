"""Laws of edges to and from the parts of dictionaries, in every model and of every family, against forward and reverse mode of runs."""

import functools as ft

import jax
import jax.numpy as jnp
import numpy as np

import jaxcirc as jc
from jaxcirc import Kind, Part, Site
from jaxcirc.graph import reaches

from ..dictionaries import in_models, spliced_at
from ..helpers import assert_close, model_named, needs_x64, one_by_one, tokens_for
from .test_run_laws import direction


SEQ = 4
LEFT_POS, RIGHT_POS = jnp.array([3, 1, 3]), jnp.array([0, 3, 1, 1])
PLACES = (
    (Kind.RESID_PRE, Kind.ATTN_OUT),
    (Kind.ATTN_OUT, Kind.MLP_OUT),
    (Kind.Z, Kind.RESID_POST),
    (Kind.LN1_NORMALIZED, Kind.MLP_POST),
    (Kind.RESID_MID, Kind.MLP_OUT),
    (Kind.MLP_OUT, Kind.RESID_POST),
)


def ends_in(model, number):
    """Two sites of the second block, or of the first and the second, that the model has and of which the one leads to the other."""
    there = jc.sites(model)
    for turn in range(len(PLACES)):
        kinds = PLACES[(number + turn) % len(PLACES)]
        source, target = (Site(layer, kind) for layer, kind in zip((1 - number % 2, 1), kinds, strict=True))
        if {source, target} <= {*there} and reaches(model, source, target):
            return source, target
    raise AssertionError("no ends")


def parts_between(model, saes, source, target):
    """Pairs of parts with a path, each part of either end once: latents to error, error to latents, the value and a decoder's input."""
    parts = (Part.ACTS, Part.ERROR, Part.VALUE, Part.INPUT)
    of = lambda site, part: Site(site.layer, site.kind, part)
    pairs = zip(parts, (Part.ERROR, Part.ACTS, Part.INPUT, Part.VALUE), strict=True)
    for at_source, at_target in pairs:
        ends = of(source, at_source), of(target, at_target)
        fits = all(end.part != Part.INPUT or saes[end.value].decoder_reads_input for end in ends)
        if fits and reaches(model, *ends, (), saes):
            yield ends


@needs_x64
@in_models
def test_every_part_is_an_end(name, kind, number):
    """Products from either side and bilinear forms; held in turn are nothing, and what a decoder reads."""
    model = model_named(kind)
    tokens, (source, target) = tokens_for(model, SEQ), ends_in(model, number)
    saes = {site: spliced_at(name, model, site, number + i) for i, site in enumerate((source, target))}
    compared = 0
    # Half of the parts for every other dictionary, and in each of two models.
    for turn, ends in list(enumerate(parts_between(model, saes, source, target)))[number % 2 :: 2]:
        held = {end.value.input if end.part == Part.ERROR else end.value.error for end in ends if end.part in HELD_WITH}
        held = {site for site in held if site.part != Part.INPUT or saes[site.value].decoder_reads_input}
        held = {site for site in held if ends[0] < site < ends[1]} if turn % 4 < 2 else set()
        if not reaches(model, *ends, held, saes):
            held = set()
        J = jc.edge(model, tokens, *ends, saes=saes, frozen=held)
        with one_by_one():
            compared += compare(
                J, ft.partial(value, model, tokens, saes, *ends, held), nothing=silent(name, ends, held)
            )
    assert compared or name == "identity"  # whose error is nothing


HELD_WITH = (Part.ERROR, Part.INPUT)


def silent(name, ends, held):
    """The identity has no error, and what moves a decoder's input alone moves the error as much the other way."""
    return (name == "identity" and Part.ERROR in {end.part for end in ends[1:]}) or (
        ends[0].part == Part.INPUT and ends[0].value.error not in held
    )


def value(model, tokens, saes, source, target, held, step):
    edits = dict.fromkeys(held, jc.Detach()) | {source: jc.Add(step)}
    return jc.run(model, tokens, saes=saes, edits=edits, record=[target])[1][target]


def compare(J, run, *, nothing):
    zero = jnp.zeros(J.source_shape)
    tangents = direction((1, *J.source_shape))
    right = direction((len(RIGHT_POS), int(np.prod(J.source_shape[1:]))), 2)
    at_one = np.zeros((len(RIGHT_POS), SEQ, right.shape[1]), right.dtype)
    at_one[np.arange(len(RIGHT_POS)), np.asarray(RIGHT_POS)] = right
    every = jnp.asarray(np.concatenate([tangents, at_one.reshape(-1, *J.source_shape)]))  # in one batch
    columns, images = np.split(np.asarray(jax.vmap(lambda v: jax.jvp(run, (zero,), (v,))[1])(every)), [1])
    tangents = jnp.asarray(tangents)
    if nothing:
        assert np.abs(J.cols(tangents)).max() < 1e-12
        return 0
    assert_close(J.cols(tangents), columns)
    cotangents = jnp.asarray(direction((1, *J.target_shape), 1))
    pull = jax.vjp(run, zero)[1]
    assert_close(J.rows(cotangents), jax.vmap(lambda w: pull(w)[0])(cotangents))
    left = direction((len(LEFT_POS), int(np.prod(J.target_shape[1:]))), 3)
    images = images.reshape(len(RIGHT_POS), SEQ, -1)[:, np.asarray(LEFT_POS)]
    want = np.einsum("kmd,md->mk", images, left)
    assert_close(J.contract(jnp.asarray(left), LEFT_POS, jnp.asarray(right), RIGHT_POS), want, mass=1e-6)
    return 1
