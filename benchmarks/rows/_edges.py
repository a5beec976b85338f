"""Edges through one sublayer, one block or several: M x K bilinear forms."""

import functools as ft

import jax
import jax.numpy as jnp

from .. import _ours, _work
from .._problems import Blocks, Items, make_blocks, make_grouped_blocks, make_items
from .._row import first_part, register, Rival, Row
from ..peers import _edges as peers


QUICK = {"d_model": 32, "heads": 4, "seq": 8, "m": 48, "k": 40, "timed": 16}
SMALL = {"d_model": 768, "heads": 12, "seq": 128, "m": 2048, "k": 4096, "timed": 64}
XL = {"d_model": 1600, "heads": 25, "seq": 512, "m": 8192, "k": 8192, "timed": 512}
SIZES = {"quick": QUICK, "small": SMALL, "xl": XL}


def in_torch(blocks: Blocks, what: str, items: Items, timed: int, *, frozen: bool = False) -> tuple[Rival, Rival]:
    """PyTorch in formulations that know nothing of the sublayer: as it is, and compiled. Chunks are around those that do best on CPUs, and
    larger for larger problems.
    """
    chunks = {16: (4, 8), 64: (8, 16, 32)}.get(timed, (32, 128, 256))
    m = len(items.left)
    timed = min(m, timed)

    def prepare(variant: str, rows: int):
        return peers.edges(blocks, what, items.first(rows), variant, frozen=frozen)

    def rival(name: str, *variants: str) -> Rival:
        return Rival(name, variants, prepare, first_part, "rows", tried=timed // 2, timed=timed, all=m)

    plain = rival("PyTorch autodiff", "loop", *(f"vmap {chunk}" for chunk in chunks))
    return plain, rival("PyTorch autodiff with torch.compile", f"compiled vmap {chunks[1]}")


def floor(items: Items) -> Rival:
    """One product of all covectors with all vectors, whatever their positions: what a dense block of edges costs at the least."""

    def prepare(variant: str, rows: int):
        left, right = jnp.asarray(items.left), jnp.asarray(items.right)
        product = jax.jit(lambda left, right: left @ right.T)
        return lambda: product(left, right)

    all = len(items.left)
    return Rival("one M x D x K product", ("jax",), prepare, None, "rows", all, all, all, in_torch=False)


def _row(what: str, said: str, sizes: dict[str, int], *, timed: int, frozen: bool = False) -> Row:
    d_model, heads, seq, m, k = (sizes[name] for name in ("d_model", "heads", "seq", "m", "k"))
    blocks = make_blocks(d_model=d_model, heads=heads, seq=seq)
    items = make_items(d_model=d_model, seq=seq, m=m, k=k)
    ends, held = _ours.ENDS[what], (_ours.PATTERN,) if frozen else ()
    rivals = [*in_torch(blocks, what, items, timed, frozen=frozen)]
    if what == "mlp":
        prepare = lambda variant, rows: peers.gathered_edges(blocks, items.first(rows))
        whole = lambda ours, variant, rows: ours[:rows]
        rivals.append(Rival("PyTorch, positions gathered by hand", ("one vjp",), prepare, whole, "rows", m, m, m))
    if what == "mlp":
        work = _work.mlp_edges(d_model=d_model, seq=seq, m=m, k=k)
    elif what == "block":
        work = _work.block_edges(**sizes)
    else:
        work = _work.attention_edges(**sizes, frozen=frozen)
    return Row(
        what=f"`{ends[0]}` to `{ends[1]}`: {said}",
        sizes=sizes,
        prepare=lambda: _ours.contraction(_ours.jacobian(blocks, *ends, frozen=held), items),
        check=ft.partial(_ours.check_columns, blocks, ends, items, frozen=held),
        rivals=(*rivals, floor(items)),
        work=work,
    )


@register("attention-block", **SIZES)
def attention_block(*, timed: int, **sizes: int) -> Row:
    return _row("attention", "layer norm and attention, scale and pattern live", sizes, timed=timed)


@register("attention-block-frozen", **SIZES)
def attention_block_frozen(*, timed: int, **sizes: int) -> Row:
    return _row("attention", "layer norm and attention, scale live, pattern frozen", sizes, frozen=True, timed=timed)


@register("mlp-block", **SIZES)
def mlp_block(*, timed: int, **sizes: int) -> Row:
    return _row("mlp", "layer norm and MLP, scale live", sizes, timed=timed)


@register("block", **SIZES)
def block(*, timed: int, **sizes: int) -> Row:
    return _row("block", "a whole block, everything live", sizes, timed=timed)


GROUPED = {"d_model": 576, "heads": 9, "kv_heads": 3, "seq": 128, "m": 2048, "k": 4096, "timed": 64}
XL_GROUPED = {"d_model": 2048, "heads": 32, "kv_heads": 8, "seq": 512, "m": 8192, "k": 8192, "timed": 512}


@register("grouped-attention-block", quick={**QUICK, "kv_heads": 2}, small=GROUPED, xl=XL_GROUPED)
def grouped_attention_block(*, kv_heads: int, timed: int, **sizes: int) -> Row:
    d_model, heads, seq, m, k = (sizes[name] for name in ("d_model", "heads", "seq", "m", "k"))
    make = ft.partial(make_grouped_blocks, d_model=d_model, heads=heads, seq=seq)
    blocks, items = make(kv_heads=kv_heads), make_items(d_model=d_model, seq=seq, m=m, k=k)
    ends = _ours.ENDS["attention"]
    run = lambda blocks: _ours.contraction(_ours.jacobian(blocks, *ends), items)
    ungrouped = lambda variant, rows: run(make(kv_heads=heads))
    own = Rival(
        "the same with keys and values of every head", ("ours",), ungrouped, None, "rows", m, m, m, in_torch=False
    )
    return Row(
        what=f"`{ends[0]}` to `{ends[1]}`: RMS norm, rotary positions, {heads} query and {kv_heads} key heads, everything live",
        sizes={**sizes, "kv_heads": kv_heads},
        prepare=lambda: run(blocks),
        check=ft.partial(_ours.check_columns, blocks, ends, items),
        rivals=(*in_torch(blocks, "attention", items, timed), own, floor(items)),
        work=_work.attention_edges(d_model=d_model, heads=heads, seq=seq, m=m, k=k),
    )


SPAN = {"d_model": 768, "heads": 12, "seq": 64, "timed": 32}
XL_SPAN = {"d_model": 1600, "heads": 25, "seq": 256, "timed": 256}


def in_jax(blocks: Blocks, items: Items, timed: int) -> Rival:
    """The same in JAX by autodiff, jitted: `vmap` of the blocks' `vjp`, in chunks."""
    m = len(items.left)
    prepare = lambda variant, rows: _ours.swept(blocks, items.first(rows), int(variant.split()[-1]))
    chunks, timed = (8, 32) if timed > 16 else (4,), min(m, timed)
    variants = tuple(f"vmap {chunk}" for chunk in chunks)
    return Rival("jitted vmap(vjp) in JAX", variants, prepare, first_part, "rows", timed, timed, m, in_torch=False)


@register(
    "six-blocks",
    quick={**QUICK, "layers": 3},
    small={**SPAN, "layers": 6, "m": 250, "k": 1000},
    xl={**XL_SPAN, "layers": 6, "m": 1000, "k": 4000},
)
@register(
    "two-blocks",
    quick={**QUICK, "layers": 2},
    small={**SPAN, "layers": 2, "m": 1000, "k": 1000},
    xl={**XL_SPAN, "layers": 2, "m": 4000, "k": 4000},
)
def several_blocks(*, layers: int, timed: int, **sizes: int) -> Row:
    d_model, heads, seq, m, k = (sizes[name] for name in ("d_model", "heads", "seq", "m", "k"))
    blocks = make_blocks(d_model=d_model, heads=heads, seq=seq, layers=layers)
    items = make_items(d_model=d_model, seq=seq, m=m, k=k)
    ends = ("blocks.0.hook_resid_pre", f"blocks.{layers - 1}.hook_resid_post")
    return Row(
        what=f"`{ends[0]}` to `{ends[1]}`: {layers} whole blocks, everything live",
        sizes={**sizes, "layers": layers},
        prepare=lambda: _ours.contraction(_ours.jacobian(blocks, *ends), items),
        check=ft.partial(_ours.check_columns, blocks, ends, items),
        rivals=(*in_torch(blocks, "block", items, timed), in_jax(blocks, items, timed)),
        work=_work.span_edges(layers=layers, **sizes),
    )
