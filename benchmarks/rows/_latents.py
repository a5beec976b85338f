"""Edges between the latents of two dictionaries, those that are on."""

import functools as ft

import jax.numpy as jnp

import jaxcirc as jc

from .. import _ours, _work
from .._problems import attention, make_blocks, make_dictionary, sae_items
from .._row import register, Row
from ._edges import floor, in_torch


QUICK = {"d_model": 32, "heads": 4, "seq": 8, "d_sae": 128, "active": 5, "timed": 16}
SMALL = {"d_model": 768, "heads": 12, "seq": 64, "d_sae": 24576, "active": 50, "timed": 64}
XL = {"d_model": 1600, "heads": 25, "seq": 256, "d_sae": 51200, "active": 32, "timed": 512}


@register("sae-edges", quick=QUICK, small=SMALL, xl=XL)
def sae_edges(*, d_model: int, heads: int, seq: int, d_sae: int, active: int, timed: int) -> Row:
    blocks = make_blocks(d_model=d_model, heads=heads, seq=seq)
    into = make_dictionary(blocks.resid, d_sae=d_sae, active=active, seed=3)
    out = make_dictionary(attention(blocks.weights[0], blocks.resid, heads), d_sae=d_sae, active=active, seed=4)
    items, ends = sae_items(into, out), _ours.ENDS["attention"]
    sizes = {
        "d_model": d_model,
        "heads": heads,
        "seq": seq,
        "m": len(items.left),
        "k": len(items.right),
        "d_sae": d_sae,
    }

    def prepare():
        saes = _ours.make_saes(into, out, ends)
        source, target = (jc.Site.parse(end).acts for end in ends)
        J = _ours.jacobian(blocks, source, target, saes=saes)
        latents = [jnp.asarray(array) for array in (out.latents, out.positions, into.latents, into.positions)]
        return lambda: J.contract(*latents)

    return Row(
        what=f"latents of `{ends[0]}` to latents of `{ends[1]}`, those that are on: {active} a position on average",
        sizes=sizes,
        prepare=prepare,
        check=ft.partial(_ours.check_columns, blocks, ends, items),
        rivals=(*in_torch(blocks, "attention", items, timed), floor(items)),
        work=_work.sae_edges(**sizes),
    )
