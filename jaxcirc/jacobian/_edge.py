"""`edge`: the Jacobian between two sites, with what is frozen held."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Int

from .._checks import check_list
from .._guard import check_backend
from .._run import check_dictionaries, check_mask, check_tokens, NOTHING, sites
from .._sites import by_site, did_you_mean, Kind, layer_of, Part, Site
from .._tap import site_read
from .._typing import Keys, Tokens
from ..graph import reaches
from ..linear import make_segment
from ..models import Transformer
from ..saes import AbstractDictionary, anonymous, Saes
from ._operator import EdgeJacobian, select
from ._positions import given_positions
from ._product import product_of


ENGINES = ("auto", "autodiff", "structured")


def edge(
    model: Transformer,
    tokens: Tokens,
    source: Site | str,
    target: Site | str,
    *,
    frozen: Iterable[Site | str] = (),
    saes: Saes = NOTHING,
    source_pos: Sequence[int] | Int[Array, " n"] | None = None,
    target_pos: Sequence[int] | Int[Array, " n"] | None = None,
    mask: Keys | None = None,
    engine: str = "auto",
) -> EdgeJacobian:
    r"""The Jacobian of the value at `target` with respect to that at `source`, at one prompt, as an operator.

    $$J = \frac{\partial x_{target}}{\partial x_{source}}\Big|_{\text{frozen held}}$$

    along every path from source to target that meets no frozen site, at the activations of the clean run. Full, direct, mediated and
    feature-to-feature Jacobians differ only in the two sites and in what is held.

    **Arguments:**

    - `tokens` `[seq]`: one prompt; `jax.vmap` for a batch.
    - `source`, `target`: any two sites, the source upstream; `site.acts` and `site.error` of a dictionary too. To and from them it is
      the derivative of a run, as of any sites: where a decoder reads its input, the error moves with that input. Decompositions
      (`jc.block_paths`, `jc.mediated_edges`, `jc.edge_effects`) hold it at its clean value, which `frozen=[site.input]` does here.
    - `frozen`: sites held at their clean value, without tangent: `jc.frozen.layer_norms(model)`, `jc.frozen.patterns(model)`,
      `jc.frozen.between(model, source, target)`, or any others. Those not between the two sites have no part in it.
    - `saes`: dictionaries, keyed by site, of the ends and frozen sites that are latents or errors.
    - `source_pos`, `target_pos`: restrict the operator to some positions, counted from the end where negative. Under `jit` and `vmap`,
      where they are not known yet, those that are not there make their rows or columns NaN.
    - `mask` `[seq]`: False for padding.
    - `engine`: `"auto"` takes closed forms where they apply, through several blocks where they save more time than it takes to compile
      them; `"structured"` insists on them, `"autodiff"` does without.

    **Returns:** an `EdgeJacobian`.

    **Raises:** `ValueError` if the source is not upstream of the target, if every path between them is frozen, for sites that the model
    does not have, positions outside the sequence, and tokens or dictionaries that do not fit; `RuntimeError` on a compiler that is known
    to compute wrong Jacobians.

    >>> J = jc.edge(model, tokens, "blocks.1.hook_resid_pre", "blocks.1.hook_resid_post", frozen=jc.frozen.patterns(model))
    >>> J.as_matrix().shape
    (6, 128, 6, 128)
    """
    check_backend()
    check_tokens(model, tokens)
    check_mask(tokens, mask)
    if engine not in ENGINES:
        raise ValueError(f"edge: engine must be one of {', '.join(map(repr, ENGINES))}, got {engine!r}.")
    saes, source, target = by_site(saes), Site.parse(source), Site.parse(target)
    held = frozenset(map(Site.parse, check_list("edge: frozen", "sites", frozen)))
    check_dictionaries(model, saes)
    check_ends(model, source, target, held, saes)
    tokens, seq = jnp.asarray(tokens), tokens.shape[0]
    source_pos, target_pos = (
        given_positions(f"edge: {name}", pos, seq)
        for name, pos in (("source_pos", source_pos), ("target_pos", target_pos))
    )
    # Parts of dictionaries that are not on the way need no dictionary in the run.
    on_the_way = frozenset(s for s in held if s.part == Part.VALUE or source < s < target)
    start, end, on_the_way, placed = in_one_block(model, source, target, on_the_way, saes)
    resids = model.entering(tokens, mask)
    segment, layer = make_segment(model, tokens, mask, resids, start, end, on_the_way, placed)
    positions = {"source_pos": source_pos, "target_pos": target_pos}
    J = EdgeJacobian(product_of([segment], [layer], source, target, **positions, engine=engine))
    if engine == "structured" and select(J) != "structured":
        raise ValueError(
            f"edge: there is no closed form from `{source}` to `{target}` with these sites frozen; through several blocks there is none "
            "under `jit`, `vmap` and derivatives. Use engine='auto', which falls back to autodiff."
        )
    return J


def check_ends(
    model: Transformer,
    source: Site,
    target: Site,
    held: frozenset[Site],
    saes: Mapping[Site, AbstractDictionary],
    *,
    verb: str = "edge",
) -> None:
    """ValueError unless both sites are there and something flows from one to the other."""
    known = sites(model)
    for site in (source, target, *held):
        if site.value not in known:
            raise ValueError(
                f"{verb}: no site `{site}` in {model.name} with {model.n_layers} layers. {did_you_mean(str(site), map(str, known))}"
            )
        if site.part != Part.VALUE and site.value not in saes:
            raise ValueError(
                f"{verb}: `{site}` is of a dictionary at `{site.value}`, and there is none. Pass saes={{…}} with one there."
            )
        if site.part == Part.INPUT and not saes[site.value].decoder_reads_input:
            raise ValueError(
                f"{verb}: there is no `{site}`: the decoder of the dictionary at `{site.value}` reads nothing but its latents."
            )
    ends = {source, target} & held
    if ends:
        raise ValueError(
            f"{verb}: `{min(ends)}` is an end of the edge and frozen, so the edge is empty. Take it out of `frozen`."
        )
    if not reaches(model, source, target, (), saes):
        later = "is not computed before" if source >= target else "does not feed"
        raise ValueError(
            f"{verb}: the source `{source}` {later} the target `{target}`, so there is no Jacobian. Are they swapped?"
        )
    if not reaches(model, source, target, held, saes):
        between = ", ".join(f"`{site}`" for site in sorted(held) if source < site < target)
        raise ValueError(
            f"{verb}: every path from `{source}` to `{target}` meets a frozen site, so the edge is empty. Free one of {between}."
        )


def in_one_block(
    model: Transformer,
    source: Site,
    target: Site,
    held: frozenset[Site],
    saes: Mapping[Site, AbstractDictionary],
) -> tuple[Site, Site, frozenset[Site], dict[Site, AbstractDictionary]]:
    """The same edge between the sites that need the fewest blocks: the end of one block is the beginning of the next, and what is
    embedded is where the first begins. Dictionaries at the ends move along, with what is held of them.
    """
    start, end, placed = source, target, dict(saes)
    in_parts = lambda end: any(s.part != Part.VALUE and s.value == end.value for s in (end, *held))
    movable = lambda end: not in_parts(end) or site_read(end.value, saes[end.value]) == end.value
    if source.kind in (Kind.EMBED, Kind.POS_EMBED) and source.part == Part.VALUE and model.blocks:
        start = Site(0, Kind.RESID_PRE)
    elif source.kind == Kind.RESID_POST and movable(source) and target.value != source.value:
        after = layer_of(source) + 1
        start = Site(after, Kind.RESID_PRE, source.part) if after < model.n_layers else source
    if target.kind == Kind.RESID_PRE and movable(target) and start.layer is not None:
        before = layer_of(target) - 1
        end = Site(before, Kind.RESID_POST, target.part) if start.layer <= before else target
    moved = {old.value: new.value for old, new in ((source, start), (target, end)) if old != new and in_parts(old)}
    placed |= {new: anonymous(saes[old]) for old, new in moved.items()}
    to = lambda site: dataclasses.replace(moved[site.value] if site.value in moved else site, part=site.part)
    return start, end, frozenset(to(s) if s.part != Part.VALUE else s for s in held), placed
